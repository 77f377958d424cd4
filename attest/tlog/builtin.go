package tlog

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"hallmark.build/attest/internal/private"
)

// How calls are gathered. A checkpoint is published at once if the last one is
// older than the interval, which is the shortest that Tessera has.
const (
	CheckpointInterval = 100 * time.Millisecond
	batchAge           = 5 * time.Millisecond
	batchSize          = 256
	pollEvery          = 2 * time.Millisecond
	republishEvery     = time.Minute // for witnesses that were not there before
	collectEvery       = time.Minute // partial tiles that full ones replace
)

// Options of the built-in log.
type Options struct {
	// Tiles is the directory of what the log publishes; History, for the
	// owner alone, that of what it must remember.
	Tiles, History string
	// BaseURL is where readers get the first log. Its host names it.
	BaseURL *url.URL
	// Key signs checkpoints. If it is nil, each log has one of its own in the
	// directory Keys, made when the log begins.
	Key  Key
	Keys string
	// WitnessPolicy names the witnesses whose signatures a checkpoint must
	// have, in the format of Sigsum; nil asks for none.
	WitnessPolicy []byte
	Now           func() time.Time // nil means time.Now
}

func (o Options) now() time.Time {
	if o.Now == nil {
		return time.Now()
	}
	return o.Now()
}

// BuiltIn is the built-in log.
type BuiltIn struct {
	root      string // of the tiles of all logs
	shards    []shard
	ended     []endedLog
	active    shard
	tiles     tileDir
	guard     *guard
	witnesses *tessera.WitnessGroup // nil if none is asked for
	add       tessera.AddFn
	shutdown  func(context.Context) error
	cleanup   []func() error // last first

	published published
	entering  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	places  places
	pending map[[sha256.Size]byte]*place
}

// A place is where an entry will be.
type place struct {
	done  chan struct{} // closed once index and err are set
	index uint64
	err   error
}

// Open opens the log, or makes it on first use. It is an error that wraps
// [ErrContradiction] if the tiles are not those that the log has signed.
func Open(ctx context.Context, o Options) (*BuiltIn, error) {
	l := &BuiltIn{root: o.Tiles, places: places{}, pending: map[[sha256.Size]byte]*place{}}
	if err := l.open(ctx, o); err != nil {
		return nil, fmt.Errorf("tlog: %w", errors.Join(err, l.release()))
	}
	return l, nil
}

func (l *BuiltIn) open(ctx context.Context, o Options) error {
	if err := private.Dir(o.History); err != nil {
		return err
	}
	locked, err := lock(o.History)
	if err != nil {
		return err
	}
	l.cleanup = append(l.cleanup, locked.Close)
	var signs Key
	if l.shards, signs, err = openShards(ctx, o); err != nil {
		return err
	}
	l.active = l.shards[len(l.shards)-1]
	l.tiles = l.active.tiles(o.Tiles)
	h, err := openHistory(l.active.historyFile(o.History), l.active.verifier)
	if err != nil {
		return err
	}
	l.cleanup = append(l.cleanup, h.f.Close)
	l.guard = &guard{key: signs, v: l.active.verifier, tile: l.tiles.tile, history: h}
	if err := l.checkPublished(ctx); err != nil {
		return err
	}
	if o.WitnessPolicy != nil {
		if l.witnesses, err = parseWitnesses(o.WitnessPolicy); err != nil {
			return err
		}
	}
	for _, s := range l.shards[:len(l.shards)-1] {
		if err := l.openEnded(ctx, s, o.Tiles); err != nil {
			return fmt.Errorf("log %d, which has ended: %w", s.Number, err)
		}
	}
	return l.start(ctx)
}

// An endedLog answers for what it has, so that a draft that was entered and whose
// proof was lost with the process is not entered twice.
type endedLog struct {
	v      *verifier
	tiles  tileDir
	cp     checkpoint
	places places
}

func (l *BuiltIn) openEnded(ctx context.Context, s shard, root string) error {
	e := endedLog{v: s.verifier, tiles: s.tiles(root), places: places{}}
	text, err := e.tiles.checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is kept elsewhere
	}
	if err != nil {
		return err
	}
	if e.cp, err = e.v.open(text); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrContradiction, e.tiles, err)
	}
	l.ended = append(l.ended, e)
	return e.places.read(ctx, e.tiles, e.cp.size)
}

// checkPublished compares the tiles' checkpoint with the history, before
// anything is written.
func (l *BuiltIn) checkPublished(ctx context.Context) error {
	last := l.guard.history.last
	text, err := l.tiles.checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		if last.size > 0 {
			return fmt.Errorf("%w: %s is gone, and had %d entries: restore it", ErrContradiction, l.tiles, last.size)
		}
		return nil
	}
	if err != nil {
		return err
	}
	cp, err := l.active.verifier.open(text)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrContradiction, l.tiles, err)
	}
	if cp.size > last.size {
		return fmt.Errorf("%w: %s has %d entries, of which the history knows %d: restore it", ErrContradiction, l.tiles, cp.size, last.size)
	}
	return nil
}

// start hands the directory to Tessera and proves that it continues what was
// signed.
func (l *BuiltIn) start(ctx context.Context) error {
	if err := os.MkdirAll(string(l.tiles), 0o755); err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.cleanup = append(l.cleanup, func() error { stop(); return nil })
	driver, err := posix.New(running, posix.Config{Path: string(l.tiles), HTTPClient: witnessClient()})
	if err != nil {
		return err
	}
	options := tessera.NewAppendOptions().WithCheckpointSigner(l.guard).
		WithBatching(batchSize, batchAge).WithCheckpointInterval(CheckpointInterval).
		WithCheckpointRepublishInterval(0).WithGarbageCollectionInterval(collectEvery)
	if l.witnesses != nil {
		options = options.WithWitnesses(*l.witnesses, &tessera.WitnessOptions{Timeout: witnessTimeout}).WithCheckpointRepublishInterval(republishEvery)
	}
	appender, shutdown, reader, err := tessera.NewAppender(running, driver, options)
	if err != nil {
		return errors.Join(l.guard.failure(), err)
	}
	l.add, l.shutdown = appender.Add, shutdown
	size, err := reader.IntegratedSize(ctx)
	if err != nil {
		return err
	}
	root, err := rootAt(ctx, size, l.tiles.tile)
	if err != nil {
		return err
	}
	if err := l.guard.continues(ctx, size, root); err != nil {
		return fmt.Errorf("%s: %w: restore the state that belongs to the history", l.tiles, err)
	}
	return l.places.read(ctx, l.tiles, size)
}

// places are those of the entries whose leaf hash starts so. They take about 20
// MB of memory for each million entries, and spare a database that would have to
// agree with the log.
type places map[uint64]uint64

func placeKey(leafHash []byte) uint64 { return binary.BigEndian.Uint64(leafHash) }

// read learns where each entry is.
func (p places) read(ctx context.Context, tiles tileDir, size uint64) error {
	for r := range layout.Range(0, size, size) {
		hashes, err := tiles.tile(ctx, 0, r.Index, r.Partial)
		if err != nil {
			return err
		}
		for i := range uint64(r.N) {
			if len(hashes) < int(i+1)*sha256.Size {
				return fmt.Errorf("%s: tile 0/%d is too short", tiles, r.Index)
			}
			key := placeKey(hashes[i*sha256.Size:])
			if _, ok := p[key]; !ok {
				p[key] = r.Index*layout.TileWidth + i
			}
		}
	}
	return nil
}

// Enter implements [Log].
func (l *BuiltIn) Enter(ctx context.Context, text []byte) ([]byte, error) {
	d, err := parseDraft(text)
	if err != nil {
		return nil, err
	}
	for _, e := range l.ended {
		if index, ok := e.places[placeKey(d.leafHash)]; ok {
			return answer(ctx, d, e.v, e.tiles, index, e.cp)
		}
	}
	index, err := l.place(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("tlog: enter: %w", err)
	}
	cp, err := l.await(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("tlog: entry %d: %w", index, err)
	}
	return answer(ctx, d, l.active.verifier, l.tiles, index, cp)
}

// answer proves an entry under a checkpoint, and believes it then alone.
func answer(ctx context.Context, d *draft, v *verifier, tiles tileDir, index uint64, cp checkpoint) ([]byte, error) {
	builder, err := client.NewProofBuilder(ctx, cp.size, tiles.tile)
	if err != nil {
		return nil, fmt.Errorf("tlog: entry %d: %w", index, err)
	}
	path, err := builder.InclusionProof(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("tlog: entry %d: %w", index, err)
	}
	entry := d.entry(v, index, cp, path)
	if _, err := d.verifyEntry(v, entry); err != nil {
		return nil, fmt.Errorf("tlog: entry %d: %w", index, err)
	}
	return d.with(entry)
}

// place finds the entry or makes it.
func (l *BuiltIn) place(ctx context.Context, d *draft) (uint64, error) {
	p, err := l.begin(d)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.done:
		return p.index, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// begin has the entry added unless it is there or on its way.
func (l *BuiltIn) begin(d *draft) (*place, error) {
	hash, key := [sha256.Size]byte(d.leafHash), placeKey(d.leafHash)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the log is closed")
	}
	if err := l.guard.failure(); err != nil {
		return nil, err
	}
	if p, ok := l.pending[hash]; ok {
		return p, nil
	}
	if index, ok := l.places[key]; ok {
		p := &place{done: make(chan struct{}), index: index}
		close(p.done)
		return p, nil
	}
	p := &place{done: make(chan struct{})}
	l.pending[hash] = p
	future := l.add(context.Background(), tessera.NewEntry(d.body)) // outlives this caller
	l.entering.Go(func() {
		index, err := future()
		l.mu.Lock()
		defer l.mu.Unlock()
		p.index, p.err = index.Index, err
		if err == nil {
			l.places[key] = index.Index
		}
		delete(l.pending, hash)
		close(p.done)
	})
	return p, nil
}

// await waits for a checkpoint that covers the entry and has the signatures it
// must have.
func (l *BuiltIn) await(ctx context.Context, index uint64) (checkpoint, error) {
	for {
		cp, err := l.published.read(ctx, l.tiles, l.active.verifier)
		if err != nil {
			return checkpoint{}, err
		}
		if cp.size > index && (l.witnesses == nil || l.witnesses.Satisfied(cp.note)) {
			return cp, nil
		}
		if err := l.guard.failure(); err != nil {
			return checkpoint{}, err
		}
		select {
		case <-ctx.Done():
			if l.witnesses != nil {
				return checkpoint{}, fmt.Errorf("no checkpoint yet that the witnesses have signed: %w", ctx.Err())
			}
			return checkpoint{}, fmt.Errorf("no checkpoint yet: %w", ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// published is the latest checkpoint, read for all who wait for it.
type published struct {
	mu   sync.Mutex
	at   time.Time
	text string
	cp   checkpoint
}

func (p *published) read(ctx context.Context, tiles tileDir, v *verifier) (checkpoint, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < pollEvery {
		return p.cp, nil
	}
	text, err := tiles.checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint{}, nil // the first one waits for its witnesses
	}
	if err != nil {
		return checkpoint{}, err
	}
	if string(text) != p.text {
		if p.cp, err = v.open(text); err != nil {
			return checkpoint{}, fmt.Errorf("%w: %w", ErrContradiction, err)
		}
		p.text = string(text)
	}
	p.at = time.Now()
	return p.cp, nil
}

// Trusted implements [Log].
func (l *BuiltIn) Trusted() []*trustpb.TransparencyLogInstance { return trustedShards(l.shards) }

// Close implements [Log].
func (l *BuiltIn) Close(ctx context.Context) error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	l.entering.Wait() // a batch is not long
	var err error
	if l.guard.failure() == nil {
		if err = l.shutdown(ctx); err != nil {
			err = fmt.Errorf("tlog: close: %w", err)
		}
	}
	return errors.Join(err, l.release())
}

func (l *BuiltIn) release() error {
	var err error
	for i := len(l.cleanup) - 1; i >= 0; i-- {
		err = errors.Join(err, l.cleanup[i]())
	}
	l.cleanup = nil
	return err
}

// signTimeout bounds the wait for a key that is somewhere else.
const signTimeout = 30 * time.Second

// A guard signs checkpoints, and none that contradicts an earlier one. It is
// Tessera's note.Signer.
type guard struct {
	key  Key
	v    *verifier
	tile client.TileFetcherFunc

	mu      sync.Mutex // held while the key signs, which may take as long as signTimeout
	history *history
	failed  atomic.Pointer[error] // why it will never sign again
}

var _ note.Signer = (*guard)(nil)

func (g *guard) Name() string    { return g.v.Name() }
func (g *guard) KeyHash() uint32 { return g.v.KeyHash() }

// Sign signs a checkpoint's text. The checkpoint is durable before Sign returns.
func (g *guard) Sign(msg []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.failure(); err != nil {
		return nil, err
	}
	size, root, err := parseText(string(msg), g.v.origin)
	if err != nil {
		return nil, err
	}
	if err := g.check(ctx, size, root); err != nil {
		return nil, err
	}
	sig, err := g.key.SignCheckpoint(ctx, msg)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	if !g.v.Verify(msg, sig) {
		return nil, errors.New("sign checkpoint: the signature does not verify with the log's key")
	}
	if g.history.last.root == nil || g.history.last.size != size {
		line := checkpoint{size: size, root: root, sig: encodeSignature(g.v, sig)}
		if err := g.history.append(line); err != nil {
			return nil, err
		}
	}
	return sig, nil
}

func encodeSignature(v *verifier, sig []byte) string {
	return base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, v.KeyHash()), sig...))
}

// continues proves that a tree contains all that was signed.
func (g *guard) continues(ctx context.Context, size uint64, root []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.check(ctx, size, root)
}

func (g *guard) check(ctx context.Context, size uint64, root []byte) error {
	if g.history.last.root == nil {
		return nil
	}
	err := extends(ctx, g.history.last, size, root, g.tile)
	if errors.Is(err, ErrContradiction) {
		g.failed.Store(&err)
	}
	return err
}

// failure does not wait for a key that is slow to sign.
func (g *guard) failure() error {
	if err := g.failed.Load(); err != nil {
		return *err
	}
	return nil
}
