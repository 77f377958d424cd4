// Package attest turns the evidence record of one job attempt into in-toto statements.
//
// # The statement
//
// [Statements] is a pure function: the same record and the same [Facts] give
// the same bytes, today and in an auditor's hands years later. It reads no
// clock, no file and no network. What it writes is an in-toto Statement v1 with
// a SLSA provenance v1 predicate of build type [BuildType], described field by
// field, with schema and example, in buildtype.md beside this file.
//
//	subject                  every artifact that GitLab accepted, and every
//	                         regular file in it
//	externalParameters       record.External, word for word: what tenants control
//	internalParameters       the platform, the network that it built, GitLab's facts
//	resolvedDependencies     the source, if the workspace was found equal to the
//	                         commit; images by digest; whatever the border let in
//	runDetails               builder id and version, invocation id, times, byproducts
//	hallmark_completeness    per class of input, why the list is complete
//	hallmark_result          how job and stages ended
//	hallmark_source          what the comparison of workspace and commit found
//	hallmark_part            only where subjects fill several statements
//
// Extensions stand inside the predicate and only take trust away: without them
// nothing in the statement is untrue. A workspace that differed from its commit,
// say, has no gitCommit among the dependencies at all. But only hallmark_result
// says that a job failed, and whoever ignores it takes outputs of failed jobs.
//
// # Subjects
//
// An artifact is named by its file name, a file by its path below the project
// directory. Where two names meet with different digests, both get the
// artifact's name in front ("artifacts.zip:dist/app"), then its type, then the
// number of the record's entry; the same name with the same digest stands once.
// Subjects are sorted by name. Verifiers of today take [MaxSubjects] in one
// statement, so more are split over several that share the invocation id and
// say in hallmark_part which part they are and what all subjects hash to.
//
// # Dependencies
//
// Each exchange of which a body crossed the border is a dependency, whatever
// its status and however it ended: one for each combination of URL, digest and
// the location that redirects led to, with the stages and roles that asked. Two
// kinds are counted and hashed as byproducts instead: git's protocol with the
// job's own repository during get_sources, if the workspace was then found equal
// to the commit and the client had asked for no other object (packs are made
// anew for each clone; the commit stands for them), and exchanges that brought
// no byte of a body (HEAD, not modified, no answer). Headers are not
// hashed. A byproduct that stands for entries has as digest the SHA-256 of their
// record lines, each with its newline.
//
// # Completeness
//
// Of each class of input the statement says why no other input can exist:
// "hermetic", nothing could enter after sources and image; "border", entry was
// by the recorded border alone; "declared", it could not be seen. The words are
// derived from how the sandbox was built and from what was measured, never from
// what the job says. See [completeness].
//
// # Refusals
//
// A record that contradicts itself is never attested. [check] lists every rule;
// each is a [Reason] with a test in which it alone fails. A [Refusal] that is
// not Security means that there is nothing to sign, or more than verifiers take.
//
// # Trust
//
// The record is the host's story, which the authority has checked with GitLab
// and acknowledged while the job ran. Strings in it may come from the tenant:
// they are copied as JSON strings, bounded by the record's own limits, and are
// never interpreted. Entries must come from package record, which has checked
// their form and the chain of hashes.
package attest
