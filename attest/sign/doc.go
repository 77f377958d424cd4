// Package sign turns a statement into a Sigstore bundle; it is the only code near a key.
//
// # What it signs
//
// [Signer.Sign] takes an [attest.Statement] that package attest has made from
// a record, and nothing else: neither bytes nor digests from outside. The
// envelope is DSSE with one ECDSA P-256 signature with SHA-256 over the
// pre-authentication encoding, by a key that exists for this one statement and
// is gone when Sign returns. The certificate of that key lives for
// [LeafLifetime]. The built-in authority has it name the builder id as URI SAN,
// and the issuer in the extensions that Fulcio uses (1.3.6.1.4.1.57264.1.1 and
// .1.8), so that Sigstore's verifiers compare both with what they were told to
// expect; a Fulcio has it name the authority's OIDC identity. A timestamp
// authority signs the time over the signature: the certificate's short life has
// a meaning long after it ended.
//
// All of it is one bundle, version 0.3, checked by its maker against its own
// trusted root before anybody gets it. The transparency log comes after that.
//
// # The keyring
//
// Two keys last: the one that issues certificates, and the one that signs time.
// Each has generations. A generation is a key, wherever package key finds it,
// a certificate, and a window of time within which its signatures count. The
// keyring is a directory for its owner alone:
//
//	keyring.json    every generation there ever was; nothing secret
//	keyring.lock    held by whoever changes it
//	ID.pem          the private key of a generation that is kept in a file
//
// Who can read the directory can sign as the authority, unless the keys are in
// tokens or services. Who can write it can also have another key trusted: the
// trusted root is made of it.
//
// Any number of processes may sign with one keyring, on a file system on which
// they share locks. Each looks, before each signature, whether keyring.json has
// been replaced, and reads it anew if so; there is nothing to restart and
// no signal to send. A keyring that cannot be read stops the signing. A key is
// opened when it is to sign first: the next one's token may be away until then.
//
// # Rotation
//
// [Rotate] adds a generation whose window starts now or later, and ends the
// window of the one before [Overlap] after that. The trusted root names all
// generations with their windows, so what an old key signed stays good, and
// what it signs after its window does not count. The timestamp decides which of
// the two it was. A private key in a file is removed by the first change of the
// keyring after its window.
//
// Readers need the new trusted root before they see the first signature of a
// new key: announce it ahead of time, by rotating with a delay.
//
// # When a key is lost
//
// [Revoke] ends a window at the moment of the loss, or altogether, and removes
// the private key.
//
//   - The certificate authority's key was lost at a known time: revoke it with
//     that time. A thief needs a timestamp from within the window for each
//     signature, and gets none from before the loss. Honest signatures between
//     the loss and the rotation stop counting too; build those outputs again.
//   - The timestamp authority's key was lost: whoever has it can write any time.
//     Alone it forges nothing, for a certificate is missing. Revoke it with
//     the time of the loss.
//   - Both were lost, as when they lie in the same directory: no time in a
//     statement can be believed. Revoke both altogether. Everything that they
//     signed is refused and must be built again, unless the transparency log
//     shows that it was there before.
//
// The drill, which a test goes through: rotate, revoke, hand the trusted root
// to readers.
//
// # Outside services
//
// A [Fulcio] and a [TimestampService] are asked over HTTP, in bounded time, for
// bounded answers, without following redirects. They are believed by the
// trusted root of the configuration alone: a certificate must be of the key that
// asked, chain to an authority there, name exactly the identity and issuer of
// the configuration, and carry none of the extensions that Fulcio writes for a
// CI job; a timestamp must answer our nonce, be of our signature, and come from
// an authority there, at a time near ours. A job's ID token is never sent.
//
// What is not checked is the signed certificate timestamp, the word of a
// certificate transparency log, that a Fulcio puts in a certificate or beside it:
// neither here nor by package verify. The trusted root hands such logs on to
// verifiers that do. Whoever has stolen a Fulcio's key is therefore not found out
// by its certificate transparency log, but by the log that signatures are in.
package sign
