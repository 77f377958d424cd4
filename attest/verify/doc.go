// Package verify decides, offline, whether bundles meet a policy for an artifact.
//
// # What is decided
//
// [Artifact] takes the SHA-256 of an artifact, the bundles that may attest it,
// a policy and a trusted root, and returns a [Verdict]: a list of named checks,
// each PASS, FAIL or NOT CHECKED with its evidence. It opens no file and no
// connection. An artifact is verified if one bundle passes every check that the
// policy asks for; no check can be met by one bundle and another by a second.
//
//	bundle        the form of the bundle (below)
//	signature     the DSSE signature verifies with the certificate's key, ECDSA
//	              P-256, and sigstore-go's own verifier agrees on the whole
//	timestamp     every RFC 3161 timestamp is of this signature and from an
//	              authority in the trusted root; there is at least one
//	certificate   chains to an authority in the trusted root at each of those
//	              times, for code signing, and names one identity, a URI
//	              or a mail address, which is no CI job's
//	log           every transparency log entry verifies, and as many logs have the
//	              signature as the policy asks for, each seen by as many witnesses
//	statement     in-toto v1, SLSA provenance v1, our build type, exactly
//	builder       the statement's builder id is in the policy, and the certificate
//	              is in its name, byte for byte, from the policy's issuer; or in
//	              the name and from the issuer that the policy pairs with it
//	subject       the artifact is among the subjects, by every digest
//	parameters    no external parameter that this verifier does not know
//	source        the repository is in the policy, and was what was built
//	ref           the branch or tag is in the policy, and protected if asked
//	project       the project is in the policy
//	result        the job ended as the policy wants
//	completeness  the platform says enough of each class of inputs
//	images        came from where the policy allows, each by digest, services too
//	inputs        came from where the policy allows, each with a digest
//	time          the job ended before it was signed, at an age that is allowed
//
// The checks from statement on judge what the statement says, and are made only
// if the first five hold: what nobody signed says nothing.
//
// # Strictness
//
// Other verifiers accept more; each of these is refused here because two
// readers could understand it differently, or because a writer of ours never
// writes it: another media type than bundle v0.3; duplicate JSON keys, keys
// that differ from the documented ones in case alone, unknown keys in bundle,
// statement, subject and external parameters; base64 that is not canonical; a
// key id; a public key or a chain instead of one certificate; not exactly one
// signature; a log entry of another kind than hashedrekord 0.0.2, with a time or
// a promise, or that does not say the same as its proof, its body and its
// checkpoint; hex in upper case; a subject with a digest that cannot be
// compared; a subject name twice. Unknown fields elsewhere in the predicate
// are ignored, as SLSA asks: they can never turn a refusal into an acceptance.
//
// # The transparency log
//
// A policy that says nothing of logs asks for one as soon as the trusted root
// names one: were the entry optional, whoever has a key that he should not have
// would leave it out. Every entry that is present must verify against a log in
// the trusted root, asked for or not. Logs are counted by operator, or by name
// where the trusted root names none; neither two entries nor two keys of one log
// are two.
//
// A policy can name witnesses, who cosign the checkpoints that extend what they saw
// before, and ask for some of them. A log does not count then whose checkpoint
// they have not cosigned: whoever stole its key could show each reader another. A
// witness is one by its name, however many keys it has. A cosignature in the name
// of one that does not verify fails the check, whether it is needed or not.
//
// Certificate transparency (SCTs) is not used: what a signer may be
// called is the policy's to say.
//
// # Windows
//
// A trusted root says from when until when each key is trusted. Certificates
// and timestamps are held against the window of the authority that made them, a
// log entry against that of the log's key, all at the time that the timestamps
// say. A key that is rotated keeps its window, and old bundles stay good; one
// that was stolen has its window end before the theft, or is gone from the
// file. Nobody can sign back into a window without a trusted clock that lies.
//
// # Trust
//
// A writer of the trusted root decides whose signatures count, a writer of the
// policy what they must say; both digests are in the verdict. Bundles are
// hostile input: they are bounded in number, size and depth before anything
// else reads them, and are parsed once, by this package; sigstore-go verifies
// the parsed values, not the text.
//
// # Could not decide
//
// If there is no bundle, no readable bundle, no valid policy or no usable
// trusted root, nothing was judged: that is [Undecided], never [Verified].
package verify
