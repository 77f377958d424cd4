package tlog

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"golang.org/x/mod/sumdb/note"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

// A Key signs checkpoints.
type Key interface {
	Public() crypto.PublicKey
	// SignCheckpoint signs a checkpoint's text: with Ed25519 the text itself,
	// with ECDSA P-256 its SHA-256, as ASN.1.
	SignCheckpoint(ctx context.Context, text []byte) ([]byte, error)
}

const maxKeyFile = 16 << 10

// FileKey reads an Ed25519 key from a file that its owner alone can read, and
// makes it on first use. Witnesses know no other kind of key.
func FileKey(name string) (Key, error) {
	k, err := readKey(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := createKey(name); err != nil {
		return nil, fmt.Errorf("tlog: key: %w", err)
	}
	return readKey(name)
}

func readKey(name string) (Key, error) {
	text, err := private.ReadFile(name, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("tlog: key: %w", err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("tlog: key: %s: want one PEM block PRIVATE KEY", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("tlog: key: %s: does not parse", name) // the cause might quote it
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("tlog: key: %s: not an Ed25519 key", name)
	}
	return fileKey{ed}, nil
}

func createKey(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := durable.Create(name, text, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

type fileKey struct{ key ed25519.PrivateKey }

func (k fileKey) Public() crypto.PublicKey { return k.key.Public() }

func (k fileKey) SignCheckpoint(_ context.Context, text []byte) ([]byte, error) {
	return ed25519.Sign(k.key, text), nil
}

// unused ends the name of a key whose log has not begun: the list of logs does
// not name it yet. A key under its whole name may have signed, so that no log may
// begin with it; the trace of a crash, or of a start that failed, is not one.
const unused = ".unused"

func (o Options) keyFile(number int) string {
	return filepath.Join(o.Keys, "log-"+strconv.Itoa(number)+".pem")
}

// nextKey is the public key, PKIX, of a log that is about to begin.
func (o Options) nextKey(number int) ([]byte, error) {
	k := o.Key
	if k == nil {
		name := o.keyFile(number)
		if _, err := os.Lstat(name); err == nil {
			return nil, fmt.Errorf("%s is there, and %s knows nothing of its log, which would begin anew under a key that has signed it: "+
				"restore both, or remove the key: the next log has another, and the trusted root no longer names the lost one", name, o.History)
		}
		var err error
		if k, err = FileKey(name + unused); err != nil {
			return nil, err
		}
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return der, nil
}

// keyOf opens the key of a log that has begun.
func (o Options) keyOf(number int) (Key, error) {
	if o.Key != nil {
		return o.Key, nil
	}
	name := o.keyFile(number)
	if err := os.Link(name+unused, name); err == nil || errors.Is(err, fs.ErrExist) {
		err = errors.Join(durable.SyncDir(o.Keys), os.Remove(name+unused))
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
	}
	return readKey(name)
}

func (o Options) destroyKey(number int) error {
	if o.Keys == "" {
		return nil
	}
	if err := os.Remove(o.keyFile(number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(o.Keys)
}

// DigestKey signs with a key that makes ECDSA signatures of SHA-256 digests, as
// those of tokens and key services do.
func DigestKey(k interface {
	Public() *ecdsa.PublicKey
	Sign(ctx context.Context, digest []byte) ([]byte, error)
}) Key {
	return digestKey{k.Public(), k.Sign}
}

type digestKey struct {
	public crypto.PublicKey
	sign   func(ctx context.Context, digest []byte) ([]byte, error)
}

func (k digestKey) Public() crypto.PublicKey { return k.public }

func (k digestKey) SignCheckpoint(ctx context.Context, text []byte) ([]byte, error) {
	digest := sha256.Sum256(text)
	return k.sign(ctx, digest[:])
}

// A verifier knows a log by its name and key.
type verifier struct {
	origin  string
	der     []byte // the key, PKIX
	details commonpb.PublicKeyDetails
	id      []byte // the whole key id; the note has its first four bytes
	check   func(text, sig []byte) bool
}

// newVerifier computes the key id as Rekor does: for ECDSA it is that of
// RFC 6962, not the one of signed notes.
func newVerifier(origin string, der []byte) (*verifier, error) {
	if err := checkOrigin(origin); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("public key does not parse")
	}
	v := &verifier{origin: origin, der: der}
	switch key := key.(type) {
	case ed25519.PublicKey:
		id := sha256.Sum256(append([]byte(origin+"\n\x01"), key...))
		v.id, v.details = id[:], commonpb.PublicKeyDetails_PKIX_ED25519
		v.check = func(text, sig []byte) bool { return ed25519.Verify(key, text, sig) }
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, errors.New("public key is not ECDSA P-256")
		}
		id := sha256.Sum256(der)
		v.id, v.details = id[:], commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
		v.check = func(text, sig []byte) bool {
			digest := sha256.Sum256(text)
			return ecdsa.VerifyASN1(key, digest[:], sig)
		}
	default:
		return nil, errors.New("public key is neither Ed25519 nor ECDSA P-256")
	}
	return v, nil
}

// checkOrigin allows what a host's name can be: verifiers take the name of the
// log from the host of its URL.
func checkOrigin(origin string) error {
	if origin == "" || strings.Trim(origin, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:") != "" {
		return fmt.Errorf("name %q is not that of a host", origin)
	}
	return nil
}

// verifier is a note.Verifier.
func (v *verifier) Name() string                 { return v.origin }
func (v *verifier) KeyHash() uint32              { return binary.BigEndian.Uint32(v.id) }
func (v *verifier) Verify(text, sig []byte) bool { return v.check(text, sig) }

// A checkpoint is a size and a root that a log has signed.
type checkpoint struct {
	size uint64
	root []byte
	note []byte // the whole, as it was signed
	sig  string // the log's own, as in the note
}

const (
	maxCheckpoint = 64 << 10
	maxSize       = 1 << 62
)

// open reads a checkpoint that the log has signed, before all others: verifiers
// differ in which signatures they look at. Those that follow say nothing here.
func (v *verifier) open(text []byte) (checkpoint, error) {
	if len(text) > maxCheckpoint {
		return checkpoint{}, fmt.Errorf("checkpoint: more than %d bytes", maxCheckpoint)
	}
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return checkpoint{}, fmt.Errorf("checkpoint: not signed by log %s: %w", v.origin, err)
	}
	if !strings.HasPrefix(string(text[len(n.Text):]), "\n— "+v.origin+" "+n.Sigs[0].Base64+"\n") {
		return checkpoint{}, errors.New("checkpoint: somebody else signed it before its log")
	}
	size, root, err := parseText(n.Text, v.origin)
	if err != nil {
		return checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	return checkpoint{size: size, root: root, note: text, sig: n.Sigs[0].Base64}, nil
}

// parseText reads the signed text: three lines, as this log writes them and
// Rekor does.
func parseText(text, origin string) (size uint64, root []byte, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return 0, nil, errors.New("not three lines")
	}
	if lines[0] != origin {
		return 0, nil, fmt.Errorf("of log %.80q, not %s", lines[0], origin)
	}
	if size, err = parseSize(lines[1]); err != nil {
		return 0, nil, err
	}
	if root, err = parseRoot(lines[2]); err != nil {
		return 0, nil, err
	}
	return size, root, nil
}

func parseSize(text string) (uint64, error) {
	size, err := strconv.ParseUint(text, 10, 64)
	if err != nil || size > maxSize || strconv.FormatUint(size, 10) != text {
		return 0, fmt.Errorf("size %.40q", text)
	}
	return size, nil
}

func parseRoot(text string) ([]byte, error) {
	root, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(root) != sha256.Size {
		return nil, fmt.Errorf("root %.60q", text)
	}
	return root, nil
}

// text is what is signed.
func text(origin string, size uint64, root []byte) string {
	return origin + "\n" + strconv.FormatUint(size, 10) + "\n" + base64.StdEncoding.EncodeToString(root) + "\n"
}
