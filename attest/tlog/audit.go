package tlog

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
)

// A Report says what an audit found.
type Report struct {
	Version int         `json:"version"` // 1
	Logs    []LogReport `json:"logs"`
	// Bundles are those that are in a log, of those that were looked at.
	Bundles int `json:"bundles"`
	// Unclaimed are entries of no bundle that was looked at: on its way to the
	// store, lost from there, or signed by somebody else.
	Unclaimed []Unclaimed `json:"unclaimed"`
	// Problems are what contradicts what. The logs are proven if there is none.
	Problems []string `json:"problems"`
}

// A LogReport is about one log.
type LogReport struct {
	Number      int    `json:"number"`
	Origin      string `json:"origin"`
	KeyID       string `json:"key_id"` // hex
	Entries     uint64 `json:"entries"`
	Root        string `json:"root"` // hex, of all entries
	Checkpoints int    `json:"checkpoints"`
	Witnessed   bool   `json:"witnessed"` // the latest has the signatures that the policy wants
}

// An Unclaimed entry, as its certificate tells.
type Unclaimed struct {
	Log      int       `json:"log"`
	Entry    uint64    `json:"entry"`
	Identity string    `json:"identity"`
	Issued   time.Time `json:"issued"`
}

// Limits of a report.
const (
	maxProblems  = 100
	maxUnclaimed = 1000
)

// Proven tells whether nothing contradicts.
func (r *Report) Proven() bool { return len(r.Problems) == 0 }

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// A source is where a log can be read.
type source interface {
	checkpoint(ctx context.Context) ([]byte, error)
	tile(ctx context.Context, level, index uint64, partial uint8) ([]byte, error)
	entries(ctx context.Context, index uint64, partial uint8) ([]byte, error)
}

// Bundles calls each with every bundle and its name.
type Bundles func(ctx context.Context, each func(name string, bundle []byte) error) error

// Audit proves the built-in logs of a directory, also while a process has them
// open: every checkpoint that was ever signed is of a tree that the next one
// extends, computed from the entries alone; the tiles are of that tree; each
// entry is a signature that verifies; and each bundle has its entry, under a
// checkpoint that was signed once. An error means that it could not be decided.
func Audit(ctx context.Context, o Options, bundles Bundles) (*Report, error) {
	r := &Report{Version: 1, Unclaimed: []Unclaimed{}, Problems: []string{}}
	shards, err := readShards(o.History)
	if err != nil {
		return nil, fmt.Errorf("tlog: %w", err)
	}
	if shards == nil {
		return nil, fmt.Errorf("tlog: %s: there is no log yet", o.History)
	}
	var trees []*tree
	for _, s := range shards {
		t := newTree(s.verifier, s.tiles(o.Tiles))
		if err := t.auditShard(ctx, r, s, o); err != nil {
			return nil, fmt.Errorf("tlog: log %d: %w", s.Number, err)
		}
		trees = append(trees, t)
	}
	if bundles == nil {
		return r, nil
	}
	err = bundles(ctx, func(name string, bundle []byte) error {
		auditBundle(r, trees, name, bundle)
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("tlog: bundles: %w", err)
	}
	for i, t := range trees {
		if err := t.listUnclaimed(ctx, r, shards[i].Number); err != nil {
			return nil, fmt.Errorf("tlog: log %d: %w", shards[i].Number, err)
		}
	}
	return r, nil
}

// auditShard audits one log of ours.
func (t *tree) auditShard(ctx context.Context, r *Report, s shard, o Options) error {
	// The published one first: the history has it before it is published.
	published, err := t.src.checkpoint(ctx)
	if err != nil {
		return err
	}
	f, err := os.Open(s.historyFile(o.History))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.readCheckpoints(f); err != nil {
		r.problem("log %d: history: %v", s.Number, err)
		return nil
	}
	cp, err := t.v.open(published)
	if err != nil {
		r.problem("log %d: published %v", s.Number, err)
		return nil
	}
	if !bytes.Equal(t.roots[cp.size], cp.root) {
		r.problem("log %d: the published checkpoint of %d entries is not in the history", s.Number, cp.size)
	}
	witnessed := false
	if o.WitnessPolicy != nil && s.End == nil {
		group, err := parseWitnesses(o.WitnessPolicy)
		if err != nil {
			return err
		}
		if witnessed = group.Satisfied(published); !witnessed {
			r.problem("log %d: the published checkpoint lacks signatures of witnesses", s.Number)
		}
	}
	if err := t.build(ctx, r, s.Number); err != nil {
		return err
	}
	r.Logs = append(r.Logs, t.report(s.Number, witnessed))
	return nil
}

func (t *tree) report(number int, witnessed bool) LogReport {
	return LogReport{
		Number: number, Origin: t.v.origin, KeyID: hex.EncodeToString(t.v.id), Entries: t.size,
		Root: hex.EncodeToString(t.roots[t.size]), Checkpoints: len(t.roots), Witnessed: witnessed,
	}
}

// AuditURL proves the log that is served at a URL, as far as its entries can: the
// checkpoint, and an earlier one if there is one, is of the tree of its entries.
// The log is one of a trusted root.
func AuditURL(ctx context.Context, base *url.URL, trusted *trustpb.TrustedRoot, earlier []byte) (*Report, error) {
	r := &Report{Version: 1, Unclaimed: []Unclaimed{}, Problems: []string{}}
	src := webTiles{newClient(nil), base}
	defer src.http.CloseIdleConnections()
	published, err := src.checkpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("tlog: %w", err)
	}
	for _, instance := range trusted.GetTlogs() {
		host, err := url.Parse(instance.GetBaseUrl())
		if err != nil {
			continue
		}
		v, err := newVerifier(host.Hostname(), instance.GetPublicKey().GetRawBytes())
		if err != nil {
			continue
		}
		cp, err := v.open(published)
		if err != nil {
			continue
		}
		t := newTree(v, src)
		if earlier != nil {
			before, err := v.open(earlier)
			if err != nil {
				return nil, fmt.Errorf("tlog: earlier %w", err)
			}
			if before.size > cp.size {
				r.problem("the log has %d entries, and had %d", cp.size, before.size)
				return r, nil
			}
			t.roots[before.size] = before.root
		}
		if root, ok := t.roots[cp.size]; ok && !bytes.Equal(root, cp.root) {
			r.problem("two checkpoints of %d entries differ", cp.size)
			return r, nil
		}
		t.roots[cp.size], t.size = cp.root, cp.size
		if err := t.build(ctx, r, 1); err != nil {
			return nil, fmt.Errorf("tlog: %w", err)
		}
		r.Logs = []LogReport{t.report(1, false)}
		return r, nil
	}
	r.problem("the checkpoint is signed by no log of the trusted root")
	return r, nil
}

// A tree is computed from entries and compared with whatever speaks of it.
type tree struct {
	v      *verifier
	src    source
	size   uint64            // of the last checkpoint
	roots  map[uint64][]byte // signed ones, by size
	leaves []byte            // the hashes of the entries

	claimed map[uint64]bool // by bundles
}

func newTree(v *verifier, src source) *tree {
	return &tree{v: v, src: src, roots: map[uint64][]byte{}, claimed: map[uint64]bool{}}
}

func (t *tree) readCheckpoints(history io.Reader) error {
	return readHistory(history, t.v, func(cp checkpoint) error {
		if cp.size < t.size || len(t.roots) > 0 && cp.size == t.size {
			return fmt.Errorf("%d entries, after %d", cp.size, t.size)
		}
		t.size, t.roots[cp.size] = cp.size, cp.root
		return nil
	})
}

// build reads every entry and compares the roots on the way, and then the tiles.
func (t *tree) build(ctx context.Context, r *Report, number int) error {
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	grown := factory.NewEmptyRange(0)
	compare := func() error {
		want, ok := t.roots[grown.End()]
		if !ok {
			return nil
		}
		root := rfc6962.DefaultHasher.EmptyRoot()
		if grown.End() > 0 {
			var err error
			if root, err = grown.GetRootHash(nil); err != nil {
				return err
			}
		}
		if !bytes.Equal(root, want) {
			r.problem("log %d: the checkpoint of %d entries is not of the entries that are there", number, grown.End())
		}
		return nil
	}
	if err := compare(); err != nil {
		return err
	}
	for tile := range layout.Range(0, t.size, t.size) {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := t.readEntries(ctx, tile)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := checkEntry(entry); err != nil {
				r.problem("log %d: entry %d: %v", number, grown.End(), err)
			}
			hash := rfc6962.DefaultHasher.HashLeaf(entry)
			t.leaves = append(t.leaves, hash...)
			if err := grown.Append(hash, nil); err != nil {
				return err
			}
			if err := compare(); err != nil {
				return err
			}
		}
	}
	return t.compareTiles(ctx, r, number)
}

func (t *tree) readEntries(ctx context.Context, tile layout.RangeInfo) ([][]byte, error) {
	text, err := t.src.entries(ctx, tile.Index, tile.Partial)
	if err != nil {
		return nil, err
	}
	var bundle api.EntryBundle
	if err := bundle.UnmarshalText(text); err != nil {
		return nil, fmt.Errorf("entries %d: %w", tile.Index, err)
	}
	if len(bundle.Entries) < int(tile.N) {
		return nil, fmt.Errorf("entries %d: %d of them, want %d", tile.Index, len(bundle.Entries), tile.N)
	}
	return bundle.Entries[:tile.N], nil
}

// compareTiles compares the tiles of all levels with what the entries make them.
func (t *tree) compareTiles(ctx context.Context, r *Report, number int) error {
	hashes := t.leaves
	for level := uint64(0); len(hashes) > 0; level++ {
		var above []byte
		for index := uint64(0); index*layout.TileWidth*sha256.Size < uint64(len(hashes)); index++ {
			want := first(hashes[index*layout.TileWidth*sha256.Size:], layout.TileWidth*sha256.Size)
			have, err := t.src.tile(ctx, level, index, layout.PartialTileSize(level, index, t.size))
			if err != nil {
				return err
			}
			if !bytes.Equal(first(have, len(want)), want) {
				r.problem("log %d: tile %d/%d is not of the entries that are there", number, level, index)
			}
			if len(want) == layout.TileWidth*sha256.Size {
				above = append(above, tileRoot(want)...)
			}
		}
		hashes = above
	}
	return nil
}

// tileRoot is the hash above a full tile.
func tileRoot(tile []byte) []byte {
	for len(tile) > sha256.Size {
		var above []byte
		for i := 0; i < len(tile); i += 2 * sha256.Size {
			above = append(above, rfc6962.DefaultHasher.HashChildren(tile[i:i+sha256.Size], tile[i+sha256.Size:i+2*sha256.Size])...)
		}
		tile = above
	}
	return tile
}

// A loggedEntry is what an entry holds.
type loggedEntry struct {
	Spec struct {
		HashedRekordV002 struct {
			Data      struct{ Digest []byte }
			Signature struct {
				Content  []byte
				Verifier struct {
					X509Certificate struct{ RawBytes []byte }
				}
			}
		}
	}
}

// parseEntry reads an entry that is spelled as this log does.
func parseEntry(body []byte) (*loggedEntry, *x509.Certificate, error) {
	var e loggedEntry
	if err := json.Unmarshal(body, &e); err != nil {
		return nil, nil, errors.New("not JSON")
	}
	record := &e.Spec.HashedRekordV002
	certificate := record.Signature.Verifier.X509Certificate.RawBytes
	same, err := hashedRekord(record.Data.Digest, record.Signature.Content, certificate)
	if err != nil || !bytes.Equal(same, body) {
		return nil, nil, fmt.Errorf("not a %s %s", entryKind, entryVersion)
	}
	leaf, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, nil, errors.New("its certificate does not parse")
	}
	return &e, leaf, nil
}

// checkEntry checks that an entry is of a signature that verifies.
func checkEntry(body []byte) error {
	e, leaf, err := parseEntry(body)
	if err != nil {
		return err
	}
	record := &e.Spec.HashedRekordV002
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || !ecdsa.VerifyASN1(key, record.Data.Digest, record.Signature.Content) {
		return errors.New("its signature does not verify")
	}
	return nil
}

// listUnclaimed lists entries that no bundle has claimed.
func (t *tree) listUnclaimed(ctx context.Context, r *Report, number int) error {
	if uint64(len(t.claimed)) == t.size || len(t.leaves) == 0 {
		return nil
	}
	for tile := range layout.Range(0, t.size, t.size) {
		entries, err := t.readEntries(ctx, tile)
		if err != nil {
			return err
		}
		for i, entry := range entries {
			index := tile.Index*layout.EntryBundleWidth + uint64(i)
			if t.claimed[index] {
				continue
			}
			if len(r.Unclaimed) == maxUnclaimed {
				return nil
			}
			r.Unclaimed = append(r.Unclaimed, unclaimed(number, index, entry))
		}
	}
	return nil
}

func unclaimed(number int, index uint64, entry []byte) Unclaimed {
	u := Unclaimed{Log: number, Entry: index}
	if _, leaf, err := parseEntry(entry); err == nil {
		u.Issued = leaf.NotBefore.UTC()
		if len(leaf.URIs) == 1 {
			u.Identity = leaf.URIs[0].String()
		}
	}
	return u
}

// auditBundle checks that a bundle has its entry in one of the logs. One that was
// entered after the audit began is not judged.
func auditBundle(r *Report, trees []*tree, name string, text []byte) {
	d, err := parseSigned(text)
	if err != nil {
		r.problem("bundle %s: %v", name, err)
		return
	}
	entries := d.bundle.GetVerificationMaterial().GetTlogEntries()
	if len(entries) != 1 {
		r.problem("bundle %s: has %d log entries: want one", name, len(entries))
		return
	}
	for _, t := range trees {
		if !bytes.Equal(entries[0].GetLogId().GetKeyId(), t.v.id) {
			continue
		}
		cp, err := d.verifyEntry(t.v, entries[0])
		if err != nil {
			r.problem("bundle %s: %v", name, err)
			return
		}
		index := uint64(entries[0].GetLogIndex())
		if index >= t.size {
			return // younger than this audit
		}
		if end := (index + 1) * sha256.Size; end > uint64(len(t.leaves)) || !bytes.Equal(t.leaves[end-sha256.Size:end], d.leafHash) {
			r.problem("bundle %s: entry %d is another one", name, index)
			return
		}
		t.claimed[index] = true
		if cp.size <= t.size && !bytes.Equal(t.roots[cp.size], cp.root) {
			r.problem("bundle %s: its checkpoint of %d entries is not in the history", name, cp.size)
			return
		}
		r.Bundles++
		return
	}
	r.problem("bundle %s: its entry is in no log of this authority", name)
}
