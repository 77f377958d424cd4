// Package invitation is the one-time token by which a runner host joins an authority.
//
// # Format
//
// A token is one line:
//
//	hallmark-join-1/attestd.example.com:8471/AUTHORITY/SECRET
//
// AUTHORITY is the SHA-256 of the public key (SubjectPublicKeyInfo) of the
// certificate authority that certifies hosts and the server they speak to.
// SECRET is for the authority to read: random bytes among others. Both are in
// unpadded base64url.
//
// # Trust
//
// Whoever has an unused token can join as the host that it names, so it
// travels like a password, and works once. The host trusts the authority that
// the token names: the first contact is authenticated from both sides. The
// authority stores the secret's hash alone.
package invitation

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// MaxToken bounds a token in bytes.
const MaxToken = 512

// SecretLength is the length of a secret in bytes.
const SecretLength = 40

const prefix = "hallmark-join-1"

// A Token lets one host join.
type Token struct {
	Address   string            // host:port of the authority
	Authority [sha256.Size]byte // see Pin
	Secret    [SecretLength]byte
}

// Pin is what a token says of an authority: the hash of its certificate's key.
func Pin(authority *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(authority.RawSubjectPublicKeyInfo)
}

// String is the token as people pass it on.
func (t Token) String() string {
	return strings.Join([]string{prefix, t.Address, encoding.EncodeToString(t.Authority[:]), encoding.EncodeToString(t.Secret[:])}, "/")
}

// Parse reads a token. No error quotes it.
func Parse(text string) (Token, error) {
	parts := strings.Split(text, "/")
	switch {
	case len(text) > MaxToken:
		return Token{}, fmt.Errorf("token: more than %d bytes", MaxToken)
	case parts[0] != prefix:
		return Token{}, fmt.Errorf("token: does not begin with %q", prefix+"/")
	case len(parts) != 4:
		return Token{}, fmt.Errorf("token: %d parts, want 4: is it whole?", len(parts))
	}
	t := Token{Address: parts[1]}
	if err := CheckAddress(t.Address); err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	if !decode(t.Authority[:], parts[2]) {
		return Token{}, errors.New("token: the authority's key is spoilt")
	}
	if !decode(t.Secret[:], parts[3]) {
		return Token{}, errors.New("token: the secret is spoilt: is it whole?")
	}
	return t, nil
}

// Hash is how the authority knows a secret.
func Hash(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// Strict: there is one way to write each value.
var encoding = base64.RawURLEncoding.Strict()

func decode(into []byte, text string) bool {
	if len(text) != encoding.EncodedLen(len(into)) || strings.ContainsAny(text, "\r\n") {
		return false
	}
	n, err := encoding.Decode(into, []byte(text))
	return err == nil && n == len(into)
}

// CheckAddress reports why hosts cannot be told to connect to an address.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	n, numErr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || numErr != nil || n == 0 || net.JoinHostPort(host, strconv.FormatUint(n, 10)) != address:
		return errors.New("the address is not host:port")
	case !isHost(host):
		return errors.New("the address has no host name")
	}
	return nil
}

func isHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Zone() == "" && !ip.IsUnspecified()
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
	return host != "" && len(host) <= 253 && strings.Trim(host, letters) == "" && host[0] != '.' && host[0] != '-'
}

// CheckName reports why a name cannot be a runner host's: it goes into
// certificates, metrics and audit records.
func CheckName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	switch {
	case name == "" || len(name) > 63:
		return errors.New("host name: want 1 to 63 characters")
	case strings.Trim(name, letters+"-.") != "":
		return errors.New("host name: want lower-case letters, digits, dashes and dots")
	case !strings.Contains(letters, name[:1]) || !strings.Contains(letters, name[len(name)-1:]):
		return errors.New("host name: want a letter or digit at both ends")
	}
	return nil
}
