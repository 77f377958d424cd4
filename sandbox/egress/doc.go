// Package egress is the border: it carries out what policy allows to cross a
// job's network, recording every byte before it counts.
//
// This comment is its design document.
//
// # What stands where
//
// Each role of a job (build, helper) has a network namespace of its own; services
// are in the build's. It has
// loopback and no other device, and it belongs to the host's user namespace:
// root inside a container has no capability over it, and can neither add a
// device or route nor change a rule. Two local routes (0.0.0.0/0 and ::/0 on lo)
// make every address of the internet this machine, so that a packet to anywhere
// is delivered here; there is nothing that it could leave by. An nft redirect
// brings every TCP connection that is not to the job's own loopback to one
// listener. The border opened the sockets inside and serves them from ordinary
// threads outside, and what it fetches leaves by the host's network:
//
//	containers                    namespace (lo alone)           sandboxd            internet
//	curl https://host/  ──────>  any address, any port  ──nft──> listener ─decide──> dial host
//	getaddrinfo("host") ──────>  any address, port 53   ───────> names    (never asked of anyone)
//	HTTPS_PROXY clients ──────>  127.0.0.1:3128         ───────> listener
//	their own servers   <─────>  127.0.0.0/8, ::1       (left alone, not even tracked)
//
// A namespace whose rules did not load would look shut and be open to nothing
// but the job itself; it would also capture nothing. So rules are read back, and
// a connection to a foreign address of either family must arrive at the listener
// with its destination, before the namespace is handed out.
//
// # Why nothing else leaves
//
// UDP other than DNS, ICMP and every other protocol are refused by a rule (not
// dropped: clients would hang), and would end at loopback in any case. Refused
// UDP destinations are remembered by the kernel, 256 at most, and recorded when
// the stage ends. Raw and packet sockets need a capability that no container has
// here. Abstract unix sockets belong to a network namespace, so those of the host
// are out of reach. Netlink changes fail with EPERM. What this package cannot
// close: socket families that no network namespace holds (AF_VSOCK to a
// hypervisor, AF_ALG); the container's seccomp profile must refuse them.
//
// # Names
//
// Services' names are answered with 127.0.0.1 in the build's namespace. Every other
// name is answered with an address of 198.18.0.0/15 of its own; other types
// are empty, HTTPS and SVCB among them, so that no client learns of encrypted
// client hello, QUIC or another port. A query is forwarded to nobody: names carry
// nothing out. The address brings the name back when a connection comes. All
// places that name the host must agree: the address, CONNECT, SNI, an absolute
// request target, Host. Where two differ the answer is 421 and the record says
// name-mismatch.
//
// # Protocols
//
// The first bytes decide. TLS is terminated with a certificate of the job's own
// authority (ECDSA P-256, its key in this process's memory alone, gone with the
// Border); inside it and outside, HTTP/1.1 and 1.0 pass. Anything else is closed
// and recorded as not-http: SSH, HTTP/2 with prior knowledge, TLS in TLS, and a
// client that waits twenty seconds for the server to begin. Heads are checked more
// strictly than net/http does, and are never forwarded as they came: the origin
// gets method, target, and an allow-list of headers, written anew. Upgrade,
// cookies, Range and If-* are not on that list, and Accept-Encoding is identity:
// an input is a whole file, and its digest is that of the file.
//
// # Decision and evidence
//
// Package policy decides by role, stage and request. A connection belongs to the
// period in which it was accepted (one stage, or the time between two) and ends
// with it; Begin and End close what is open and wait for its handlers.
//
// An answer is hashed while it streams to the client, and its last piece (64 KiB
// at most) is held back until the "fetched" entry is durable. A client that has
// the last byte has a recorded file. An answer that breaks off is recorded with
// why, and the client's connection is reset so that it cannot pass for whole. If
// evidence cannot be recorded, the connection is cut before its last byte and the
// border refuses everything from then on.
//
// A refusal is 403 with a text that names the rule, the reason and the remedy, and
// with X-Hallmark-Rule; over TLS where the client speaks TLS. It is recorded once
// as it happens; identical ones are counted and recorded when the stage ends.
//
// # Origins
//
// The name is resolved once, and the address is checked in the dialler right
// before the connection is made: private, loopback, link-local, multicast,
// carrier-grade NAT, metadata, IPv4 hidden in IPv6 (mapped, NAT64, 6to4) and the
// host's own addresses are refused, whatever the policy says. The configured
// GitLab alone is dialled wherever it is. TLS is 1.2 or newer against the
// configured roots. No proxy is taken from the environment.
//
// Redirects go back to the client, whose next request is decided anew. Only for
// artifacts and LFS objects, which GitLab may keep in object storage, the border
// follows them itself: five at most, to public addresses, without credentials
// across hosts.
//
// # Uploads
//
// An artifact is spooled to an unlinked file, in the one multipart form that
// GitLab Runner sends, and given to Config.CheckUpload. Only when that finds every
// entry equal to the sealed workspace is the form made anew around the very bytes
// and sent to GitLab: GitLab never sees a byte that was not matched. This costs
// one write and one read of the artifact, and is meant: a stream that is stopped
// half way has already told half. A difference is recorded as a violation, End
// returns it, and no further upload passes.
//
// # Caches in object storage
//
// Where the admin names the object storage that the runner keeps caches in, the
// helper may ask it for the caches of the job's project, by the presigned URLs that
// the runner writes into its scripts. It is dialled wherever it is, and no redirect
// of it is followed. An archive is taken in whole and spooled, Config.Caches asks
// who made it, and only then the helper has a byte; one that may not be given is
// answered as one that is not there. An archive that the helper sends is spooled,
// compared with the sealed workspace, and only then sent on, with the headers that
// the runner's signature covers. Of the storage's own words nothing crosses but the
// status, the length and the time of the last change.
//
// Where the helper comes with credentials instead, it speaks by the kit of the
// storage's vendor, Azure's or S3's, and sends a large archive in blocks. A block is
// seen by nobody before a list of blocks makes an object of them. So blocks pass, a
// copy of each stays here (package blocks), and the list waits until what it makes
// of the copies has been compared. It passes only if it names nothing but blocks of
// this stage that the storage has said to have. What is signed by the helper passes
// with the headers that are signed, none of which may give the object another owner,
// reader or source; bytes within a frame (aws-chunked) in the one form that S3's kit
// writes.
//
// # Limits
//
// Per role: 256 connections, 16384 names, 1000 different refusals a stage by name
// (the rest are counted together). Per connection: twenty seconds to speak, for a
// handshake and for a head, 64 KiB of head, 60 idle. Per job: 500000 exchanges, one
// artifact or cache at a time, beside the blocks of one. The path "/org" of a rule is "/org" and what is below it.
//
// The example of [Border] shows the order of calls.
package egress
