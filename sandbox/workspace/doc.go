// Package workspace is the file system of one attempt: it verifies the source tree, seals what the job wrote, and matches uploads with it.
//
// # Trust
//
// Everything below /builds and /cache was written by the tenant: names,
// links, modes, the repository in .git, archives. This package reads it from
// outside, as root, and therefore follows nothing. Every path is resolved by
// openat2 with RESOLVE_BENEATH, NO_SYMLINKS, NO_MAGICLINKS and NO_XDEV; files
// are opened with O_NONBLOCK and must be regular; links are read, never
// walked; no program is started, git least of all. Lengths, depths, counts,
// sizes and the work that compressed data can cause are bounded by named
// constants. What exceeds a bound is the job's failure (sandbox.UserError);
// what contradicts the evidence is a violation (sandbox.SecurityError); every
// other error means that nothing was decided.
//
// The caller promises order: VerifySource runs after get_sources and before
// any tenant code, while no process of the attempt but the containers' inits
// exists; Seal after every process of the build container was killed; Match
// after Seal; Close after the containers are gone.
//
// # Layout
//
//	<dir>          0700 root, a private bind mount of itself
//	<dir>/builds   an overlay of its own, nosuid, nodev, shared: /builds
//	<dir>/cache    /cache
//	<dir>/lower    the overlay's lower layer, empty
//	<dir>/upper    what the job writes, reachable through the overlay alone
//	<dir>/work     the overlay's own
//
// The mount of <dir> is private, so nothing made below it spreads over the
// host. The overlay is a shared mount: containers that bind it as slaves see
// what the host mounts below it later, and nothing that they mount comes back.
// The overlay is there for its superblock, which the seal needs. With an empty
// lower layer nothing is ever copied up. It is mounted "volatile": a workspace
// does not outlive a crash. Its private attributes are trusted.*, which a user
// namespace cannot write; redirects and metacopy are off.
//
// # Source
//
// The worktree is hashed as git would store it: blobs of regular files, mode
// 100755 where the owner may execute, links as blobs of their targets, trees
// of what is not empty, the root's .git left out. Files that are ignored or
// untracked count: get_sources cleans them away. SHA-1 is computed with
// collision detection.
//
// The commit is read from .git/objects, loose or packed, by a reader of our
// own: it needs no memory for an index, supports SHA-256, and bounds chains of
// deltas and inflated bytes; libraries at hand do neither. It believes nothing
// but hashes: an object is what it was asked for only if its bytes hash to the
// id, so replace refs, grafts and forged indexes have no effect. Alternates are
// not followed. The commit's id is GitLab's, its bytes name the tree, and so
// down to every file. Outcomes:
//
//   - match: each tracked path is there, equal, and nothing else is.
//   - mismatch: the first paths that differ are listed, each with one word:
//     changed, eol (line endings alone), mode, kind (file, link or directory),
//     missing, added, submodule, repository (a .git where none belongs), fifo,
//     socket, device, collision, unknown (a tree object is not there to tell).
//   - absent: no project directory, or no such commit in its object store.
//     This is what GIT_STRATEGY none and empty come to.
//
// A file whose blob is a Git LFS pointer may also be what the pointer stands
// for, by SHA-256 and size. An empty or absent submodule is one that was not
// asked for; a populated one is compared with the commit that the tree names,
// recursively, its objects taken from any store of the project. A file may be
// what the .gitattributes of the commit itself make of its blob: line endings,
// $Id$, one of some encodings, computed here. All are counted in the detail.
// Nothing else is forgiven: not what .git/info/attributes or a configuration
// asks for, not filters.
//
// # Seal
//
// The overlay's superblock is made read-only. This is stronger than a
// read-only mount put over the project directory:
//
//   - The kernel refuses (EBUSY) while any mount of the superblock has a file
//     open for writing, a writable mapping, or an unlinked file still open.
//     Kept descriptors, mappings without descriptors, and descriptors that
//     wait in a socket are found, not hoped away.
//   - It holds for every name: a hard link beside the project, a bind mount
//     inside a container, a directory renamed just before.
//   - A mount that propagated into a container's namespace could be unmounted
//     there by whoever holds CAP_SYS_ADMIN in it; a superblock that belongs to
//     the host's user namespace cannot be remounted.
//
// The runner's scripts need <project>.tmp to stay writable. A small tmpfs is
// mounted there, filled before it appears with a bounded copy of the plain
// files and directories that earlier stages left: file variables, the
// environment file, the git template. Links and special files are left behind.
//
// What the seal does not do: it does not keep the helper from uploading
// something else. That is what Match is for.
//
// # Match
//
// GitLab Runner's uploader runs among the tenant's variables and files, so its
// archive is a claim. Each entry must equal the sealed file of its path: kind,
// size, permission bits, every byte; a directory's kind and bits; a link's
// target. A zip file is accepted in one form only, in which all readers see
// the same: see readLayout in zip.go. A gzip file is a sequence of members with
// exactly the header that the runner writes, the path in the comment. A raw
// file must equal some sealed file, since the runner sends no path; the one
// whose name is the artifact's is preferred.
//
// Archives that are true, but name files in ways that systems read differently
// (case, Unicode form, what nobody sees, backslash, not UTF-8), or a directory by a
// name that can be a link's, are refused as the job's failure.
//
// # Needs
//
// Linux 5.15 or later, and a file system for dir that can be an overlay's upper
// layer: ext4, xfs, btrfs or tmpfs; not another overlay, nor NFS. The caller
// has CAP_SYS_ADMIN, CHOWN, DAC_OVERRIDE, FOWNER, FSETID and MKNOD: the overlay
// acts with the capabilities of who mounted it.
package workspace
