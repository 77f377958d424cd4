package tlog

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

// A shard is one log with one key. The last one that has no end is written to.
type shard struct {
	Number    int        `json:"number"` // from 1
	Origin    string     `json:"origin"` // its name, the host of BaseURL
	BaseURL   string     `json:"base_url"`
	PublicKey []byte     `json:"public_key"` // PKIX
	Start     time.Time  `json:"start"`
	End       *time.Time `json:"end,omitempty"`

	verifier *verifier
}

// overlap is how long before it was begun a log's key is trusted: what was
// signed and timestamped before, and not yet entered, goes into it.
const overlap = 7 * 24 * time.Hour

const (
	shardsFile = "logs.json"
	maxShards  = 1 << 20 // bytes
)

// newShard names a log by the URL under which the first one is served. A log
// that follows has another name, because a witness, who knows logs by it, must
// not take the new one for a fork of the old.
func newShard(number int, base *url.URL, der []byte, now time.Time) (shard, error) {
	u := *base
	if number > 1 {
		host := shardName(number) + u.Hostname()
		if u.Host = host; base.Port() != "" {
			u.Host = net.JoinHostPort(host, base.Port())
		}
		u.Path += "/" + strconv.Itoa(number)
	}
	s := shard{Number: number, Origin: u.Hostname(), BaseURL: u.String(), PublicKey: der, Start: now.UTC().Truncate(time.Second).Add(-overlap)}
	var err error
	s.verifier, err = newVerifier(s.Origin, der)
	return s, err
}

// trusted is the log as it stands in a trusted root.
func (s shard) trusted() *trustpb.TransparencyLogInstance {
	during := &commonpb.TimeRange{Start: timestamppb.New(s.Start)}
	if s.End != nil {
		during.End = timestamppb.New(*s.End)
	}
	return &trustpb.TransparencyLogInstance{
		BaseUrl:       s.BaseURL,
		HashAlgorithm: commonpb.HashAlgorithm_SHA2_256,
		PublicKey:     &commonpb.PublicKey{RawBytes: s.PublicKey, KeyDetails: s.verifier.details, ValidFor: during},
		LogId:         &commonpb.LogId{KeyId: s.verifier.id},
		// Readers who ask for several logs count those of one operator as one.
		Operator: strings.TrimPrefix(s.Origin, shardName(s.Number)),
	}
}

// shardName begins the name of a log that is not the first.
func shardName(number int) string { return "log" + strconv.Itoa(number) + "." }

func (s shard) historyFile(dir string) string {
	return filepath.Join(dir, strconv.Itoa(s.Number)+".checkpoints")
}

func (s shard) tiles(dir string) tileDir { return tileDir(filepath.Join(dir, strconv.Itoa(s.Number))) }

// readShards reads the list; there is none before the first use.
func readShards(dir string) ([]shard, error) {
	name := filepath.Join(dir, shardsFile)
	text, err := private.ReadFile(name, maxShards)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	shards, err := parseShards(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return shards, nil
}

func parseShards(text []byte) ([]shard, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var shards []shard
	if err := dec.Decode(&shards); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows the list")
	}
	if len(shards) == 0 {
		return nil, errors.New("names no log")
	}
	for i := range shards {
		s := &shards[i]
		var err error
		if s.verifier, err = newVerifier(s.Origin, s.PublicKey); err != nil {
			return nil, fmt.Errorf("log %d: %w", i+1, err)
		}
		if s.Number != i+1 || (s.End == nil) != (i == len(shards)-1) {
			return nil, fmt.Errorf("log %d: stands in the wrong place", i+1)
		}
	}
	return shards, nil
}

func writeShards(dir string, shards []shard) error {
	text, err := json.MarshalIndent(shards, "", "  ")
	if err != nil {
		return err
	}
	return durable.Replace(filepath.Join(dir, shardsFile), append(text, '\n'), 0o600)
}

// lock keeps a second process from the log.
func lock(dir string) (*os.File, error) {
	name := filepath.Join(dir, "lock")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: another process has the log open", name)
	}
	return f, nil
}

// Trusted is what a trusted root must say of the logs in a history, also while a
// process has them open. It names the first log if there is none yet.
func Trusted(ctx context.Context, o Options) ([]*trustpb.TransparencyLogInstance, error) {
	shards, err := readShards(o.History)
	if err == nil && shards == nil {
		shards, err = firstShard(ctx, o)
	}
	if err != nil {
		return nil, fmt.Errorf("tlog: %w", err)
	}
	return trustedShards(shards), nil
}

func firstShard(ctx context.Context, o Options) ([]shard, error) {
	if err := private.Dir(o.History); err != nil {
		return nil, err
	}
	l, err := lock(o.History)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	shards, _, err := openShards(ctx, o)
	return shards, err
}

func trustedShards(shards []shard) []*trustpb.TransparencyLogInstance {
	out := make([]*trustpb.TransparencyLogInstance, len(shards))
	for i, s := range shards {
		out[i] = s.trusted()
	}
	return out
}

// openShards reads the list of logs, or begins it, and opens the last one's key.
// The caller has the lock.
func openShards(ctx context.Context, o Options) ([]shard, Key, error) {
	shards, err := readShards(o.History)
	if err == nil && shards == nil {
		shards, err = beginShards(ctx, o)
	}
	if err != nil {
		return nil, nil, err
	}
	last := shards[len(shards)-1]
	signs, err := o.keyOf(last.Number)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(signs.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	if !bytes.Equal(last.PublicKey, der) {
		return nil, nil, fmt.Errorf("%w: the key is not that of log %d, %s: configure the log's own, or begin the next log with `hallmark-attestd log rotate`",
			ErrContradiction, last.Number, last.Origin)
	}
	return shards, signs, nil
}

func beginShards(ctx context.Context, o Options) ([]shard, error) {
	der, err := o.nextKey(1)
	if err != nil {
		return nil, err
	}
	first, err := newShard(1, o.BaseURL, der, o.now())
	if err != nil {
		return nil, err
	}
	if _, err := first.tiles(o.Tiles).checkpoint(ctx); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s holds a log that %s knows nothing of: restore both or neither", ErrContradiction, o.Tiles, o.History)
	}
	shards := []shard{first}
	return shards, writeShards(o.History, shards)
}

// Latest is the checkpoint that the log has published last.
func Latest(ctx context.Context, o Options) ([]byte, error) {
	shards, err := readShards(o.History)
	if err != nil {
		return nil, fmt.Errorf("tlog: %w", err)
	}
	if shards == nil {
		return nil, fmt.Errorf("tlog: %s: there is no log yet", o.History)
	}
	text, err := shards[len(shards)-1].tiles(o.Tiles).checkpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("tlog: %w", err)
	}
	return text, nil
}

// Number is that of the log which is written to, 0 before the first use.
func Number(history string) (int, error) {
	shards, err := readShards(history)
	if err != nil {
		return 0, fmt.Errorf("tlog: %w", err)
	}
	return len(shards), nil
}

// Rotate ends the log and begins the next, with a key of its own. A key among
// Keys that signs no more is destroyed. No process may have the log open.
func Rotate(o Options) error {
	l, err := lock(o.History)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	defer l.Close()
	shards, err := readShards(o.History)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	if len(shards) == 0 {
		return errors.New("tlog: there is no log yet that could be followed by another")
	}
	der, err := o.nextKey(len(shards) + 1)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	for _, s := range shards {
		if bytes.Equal(s.PublicKey, der) {
			return fmt.Errorf("tlog: the key is that of log %d: a log that follows needs its own", s.Number)
		}
	}
	base, err := url.Parse(shards[0].BaseURL)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	now := o.now().UTC().Truncate(time.Second)
	next, err := newShard(len(shards)+1, base, der, now)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	shards[len(shards)-1].End = &now
	if err := writeShards(o.History, append(shards, next)); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	if _, err := o.keyOf(next.Number); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	if err := o.destroyKey(len(shards)); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	return nil
}
