// Package sign turns a statement into a Sigstore bundle; it is the only code near a key.
//
// # What it holds
//
// One file, identity.pem, made on first use, readable by its owner alone:
//
//	ca key, ca certificate        issues one leaf for each signature
//	signing key                   signs statements, ECDSA P-256
//	tsa key, tsa certificate,     signs time, RFC 3161; the key of the tsa's root
//	tsa root certificate          is dropped once it has issued the certificate
//
// Who can read that file can sign as the authority. [Open] refuses it if its
// mode or owner lets anybody else.
//
// # What it signs
//
// [Signer.Sign] takes an [attest.Statement] that package attest has made from
// a record, and nothing else: neither bytes nor digests from outside. The
// envelope is DSSE with one ECDSA P-256 signature with SHA-256 over the
// pre-authentication encoding. The certificate lives for [LeafLifetime], names
// the builder id as URI SAN, and the issuer in the extensions that Fulcio uses
// (1.3.6.1.4.1.57264.1.1 and .1.8), so that Sigstore's verifiers compare both
// with what they were told to expect. The built-in timestamp authority signs
// the time over the signature: the certificate's short life has a meaning long
// after it ended.
//
// All of it is one bundle, version 0.3, checked by its maker against its own
// trusted root's keys before anybody gets it.
package sign
