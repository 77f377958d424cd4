package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
	"hallmark.build/attest/sign/key"
)

const (
	keyringFile    = "keyring.json"
	lockFile       = "keyring.lock"
	keyringVersion = 1
	maxKeyring     = 4 << 20
	maxGenerations = 1000
)

// The file's format.
type keyringJSON struct {
	Version     int              `json:"version"`
	Generations []generationJSON `json:"generations"`
}

type generationJSON struct {
	ID           string    `json:"id"`
	Role         Role      `json:"role"`
	Key          string    `json:"key,omitempty"`
	From         time.Time `json:"from"`
	Until        time.Time `json:"until"`
	Revoked      bool      `json:"revoked,omitempty"`
	Certificates [][]byte  `json:"certificates"`
}

func encodeKeyring(all []Generation) ([]byte, error) {
	doc := keyringJSON{Version: keyringVersion, Generations: []generationJSON{}}
	for _, g := range all {
		out := generationJSON{ID: g.ID, Role: g.Role, Key: g.Key, From: g.From, Until: g.Until, Revoked: g.Revoked}
		for _, c := range g.chain {
			out.Certificates = append(out.Certificates, c.Raw)
		}
		doc.Generations = append(doc.Generations, out)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	return append(text, '\n'), err
}

// parseKeyring reads what encodeKeyring writes, oldest generation first.
func parseKeyring(text []byte) ([]Generation, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var doc keyringJSON
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the keyring")
	}
	switch {
	case doc.Version != keyringVersion:
		return nil, fmt.Errorf("version %d: this program knows version %d", doc.Version, keyringVersion)
	case len(doc.Generations) > maxGenerations:
		return nil, fmt.Errorf("%d generations: at most %d", len(doc.Generations), maxGenerations)
	}
	var all []Generation
	for i, in := range doc.Generations {
		g, err := in.parse()
		if err != nil {
			return nil, fmt.Errorf("generation %d: %w", i, err)
		}
		if slices.ContainsFunc(all, func(other Generation) bool { return other.ID == g.ID }) {
			return nil, fmt.Errorf("generation %d: %s is there twice", i, g.ID)
		}
		all = append(all, g)
	}
	slices.SortStableFunc(all, func(a, b Generation) int { return a.From.Compare(b.From) })
	return all, nil
}

func (in generationJSON) parse() (Generation, error) {
	g := Generation{ID: in.ID, Role: in.Role, Key: in.Key, From: in.From.UTC(), Until: in.Until.UTC(), Revoked: in.Revoked}
	for _, der := range in.Certificates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Generation{}, fmt.Errorf("certificate: %w", err)
		}
		g.chain = append(g.chain, c)
	}
	return g, g.check()
}

// readKeyring reads the keyring of a directory. One that is not there yet is
// empty.
func readKeyring(dir string) ([]Generation, error) {
	name := filepath.Join(dir, keyringFile)
	text, err := private.ReadFile(name, maxKeyring)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all, err := parseKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// change lets one process at a time change the keyring: edit gets what is there
// and answers what shall be. Readers see one or the other, and never wait. The
// time is taken when it is our turn, so that it is not before the last change.
func change(o Options, edit func(all []Generation, now time.Time) ([]Generation, error)) error {
	dir := o.Dir
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := readKeyring(dir)
	if err != nil {
		return err
	}
	now := o.Now().UTC()
	if all, err = edit(all, now); err != nil {
		return err
	}
	if len(all) > maxGenerations {
		return fmt.Errorf("%d generations: at most %d", len(all), maxGenerations)
	}
	text, err := encodeKeyring(all)
	if err != nil {
		return err
	}
	if err := durable.Replace(filepath.Join(dir, keyringFile), text, 0o600); err != nil {
		return err
	}
	return sweep(dir, all, now)
}

func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: lock: %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil
}

// sweep removes private keys that never sign again, or that a crash left unnamed.
// Only the holder of the lock may.
func sweep(dir string, all []Generation, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, isKey := strings.CutSuffix(e.Name(), keySuffix)
		wanted := slices.ContainsFunc(all, func(g Generation) bool { return g.ID == id && g.Key == "" && !g.over(now) })
		ours := strings.HasPrefix(id, string(RoleCA)+"-") || strings.HasPrefix(id, string(RoleTimestamp)+"-")
		if isKey && ours && !wanted {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, durable.SyncDir(dir))
}

const keySuffix = ".pem"

// openKey opens a generation's key and makes sure that it is the one.
func openKey(ctx context.Context, dir string, g Generation) (key.Key, error) {
	uri := cmp.Or(g.Key, key.FileURI(filepath.Join(dir, g.ID+keySuffix)))
	k, err := key.Open(ctx, uri, key.Options{})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.ID, err)
	}
	if !k.Public().Equal(g.public()) {
		return nil, errors.Join(fmt.Errorf("%s: another key is where it was: rotate, or put it back", g.ID), k.Close())
	}
	return k, nil
}

// addGeneration makes a generation of the key at uri, or of a new file.
func addGeneration(ctx context.Context, dir string, role Role, uri string, from time.Time) (Generation, error) {
	if uri == "" {
		return newFile(ctx, dir, role, from)
	}
	k, err := key.Open(ctx, uri, key.Options{})
	if err != nil {
		return Generation{}, err
	}
	g, err := newGeneration(ctx, role, k, uri, from)
	return g, errors.Join(err, k.Close())
}

// newFile makes a key in a file, which is durable before the keyring names it.
func newFile(ctx context.Context, dir string, role Role, from time.Time) (Generation, error) {
	pub, data, err := key.Generate()
	if err != nil {
		return Generation{}, err
	}
	name := filepath.Join(dir, generationID(role, pub)+keySuffix)
	if err := durable.Create(name, data, 0o600); err != nil {
		return Generation{}, err
	}
	k, err := key.Open(ctx, key.FileURI(name), key.Options{})
	if err != nil {
		return Generation{}, err
	}
	return newGeneration(ctx, role, k, "", from)
}
