// Package token reaches a key in a PKCS#11 token through a process of its own.
//
// A PKCS#11 module is a vendor's C library. Loading it into the authority would
// need cgo and a dynamic linker in a program that is static otherwise, and would
// give that library the authority's memory. So the module lives in
// hallmark-pkcs11, which is started when the key is opened, logs in, and signs
// digests until its standard input ends. If it dies it is started again, though
// not at once: each start is a login, and tokens count wrong ones.
//
// # URIs
//
// A key is named by RFC 7512, of which this much is understood:
//
//	token, serial, slot-id   one of them: which token
//	object, id               one or both: which key pair of that token
//	type                     private, if it is there
//	?module-path             the module, an absolute path; required
//	?pin-source              a file with the PIN, for its owner alone, as
//	                         "/PATH" or "file:///PATH"
//
// Without pin-source the PIN is in the environment variable HALLMARK_PKCS11_PIN.
// pin-value is refused: a URI is written to configuration and logs. The PIN is
// read by hallmark-pkcs11 alone; neither messages nor errors have it.
//
//	pkcs11:token=hallmark;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/hallmark/pin
//
// # Protocol
//
// Both directions are a sequence of messages of fixed layout, numbers in network
// order. The first answer has id 0 and the public key, PKIX in DER; the others
// have their requests' ids, in any order, and an ASN.1 signature.
//
//	request   id uint32, digest [32]byte
//	answer    id uint32, status uint8 (0 done, 1 error), length uint16, value
//
// An error's value is text. The authority verifies each signature.
package token
