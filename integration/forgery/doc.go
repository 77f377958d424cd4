// Package forgery tries to get a false statement signed, or a false one believed.
//
// One test stands for one thing that an attacker wants, and bears its name. All
// that a tenant may do is done in jobs of the real GitLab Runner; what counts is
// the signed statement, the record, what reached GitLab, and what verifiers say.
// SECURITY.md lists which test stands for which threat, and a test in
// integration/law holds that list against the code.
package forgery
