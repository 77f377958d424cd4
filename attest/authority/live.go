package authority

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// live is a record in memory: enough to check the next line, and to tell
// whether a line was acknowledged before.
type live struct {
	chain  record.Chain
	hashes [][sha256.Size]byte
	size   int64  // bytes of the record, newlines included
	host   string // whose attempt it is
	ran    bool   // a stage that can run the tenant's code has started
	closing
	used time.Time // guarded by Authority.mu
}

// add checks the next line.
func (l *live) add(line []byte) (record.Entry, error) {
	e, err := l.chain.Add(line)
	if err != nil {
		return record.Entry{}, err
	}
	l.hashes = append(l.hashes, sha256.Sum256(line))
	l.size += int64(len(line)) + 1
	l.ran = l.ran || runsTenantCode(e)
	if e.Kind == record.Closed {
		var c record.Closing
		if err := e.Decode(&c); err != nil {
			return record.Entry{}, err
		}
		l.closing = closing{result: c.Result, at: e.Time}
	}
	return e, nil
}

// has reports whether the line is the one that was acknowledged under its
// number, and whether any was.
func (l *live) has(line []byte) (bool, bool) {
	seq, ok := seqOf(line)
	if !ok || seq < 0 || seq >= int64(len(l.hashes)) {
		return false, false
	}
	return l.hashes[seq] == sha256.Sum256(line), true
}

// seqOf reads a line's number and nothing else.
func seqOf(line []byte) (int64, bool) {
	var w struct {
		Seq *int64 `json:"seq"`
	}
	if len(line) > record.MaxLine || json.Unmarshal(line, &w) != nil || w.Seq == nil {
		return 0, false
	}
	return *w.Seq, true
}

// runsTenantCode reports whether an entry starts a stage in which something of
// the tenant's can run. That is every stage but prepare_script: GitLab's own
// scripts export the tenant's variables and run its hooks.
func runsTenantCode(e record.Entry) bool {
	if e.Kind != record.StageStarted {
		return false
	}
	var s record.Started
	if e.Decode(&s) != nil {
		return true
	}
	return s.Stage != "prepare_script"
}

// copy returns a live record that can be added to without changing l.
func (l *live) copy() *live {
	// Appending to the copy may write behind len(l.hashes), where l sees nothing.
	return &live{chain: l.chain, hashes: l.hashes, size: l.size, ran: l.ran, closing: l.closing}
}

// load returns the attempt's record, from memory or from the store. The caller
// holds the job's lock. Another replica may have added to the record since, and
// only added: if it is as long as what we remember, it is the same.
func (a *Authority) load(ctx context.Context, at *store.Attempt) (*live, error) {
	attempt := at.ID
	if l := a.remembered(attempt); l != nil {
		size, err := a.cfg.Store.RecordSize(ctx, attempt)
		if err != nil {
			return nil, err
		}
		switch {
		case size == l.size:
			return l, nil
		case size < l.size:
			return nil, fmt.Errorf("authority: stored record %s: holds %d bytes of %d that were acknowledged", attempt, size, l.size)
		}
	}
	l, err := a.read(ctx, attempt)
	if err != nil {
		return nil, fmt.Errorf("authority: stored record %s: %w", attempt, err)
	}
	a.keep(at, l)
	return l, nil
}

func (a *Authority) remembered(attempt string) *live {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.live[attempt]
	if l != nil {
		l.used = a.now()
	}
	return l
}

// read checks a stored record line by line: never more than one is in memory.
func (a *Authority) read(ctx context.Context, attempt string) (*live, error) {
	l := &live{}
	size, err := a.cfg.Store.RecordSize(ctx, attempt)
	if err != nil || size == 0 {
		return l, err
	}
	f, err := a.cfg.Store.OpenRecord(ctx, attempt)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewReader(io.LimitReader(f, size)) // a torn line may follow
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
		if _, err := l.add(line[:len(line)-1]); err != nil {
			return nil, err
		}
	}
}

// keep holds a record in memory. The host's other records that were not used for
// the longest time go where they take more than their share: the store has them.
func (a *Authority) keep(at *store.Attempt, l *live) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(at.ID)
	l.used, l.host = a.now(), at.Host
	a.live[at.ID] = l
	a.held[at.Host] += l.memory()
	for a.held[at.Host] > liveBytes {
		oldest := a.oldestOf(at.Host, at.ID)
		if oldest == "" {
			return
		}
		a.drop(oldest)
	}
}

// drop lets a record go from memory. The caller holds a.mu.
func (a *Authority) drop(attempt string) {
	l := a.live[attempt]
	if l == nil {
		return
	}
	delete(a.live, attempt)
	if a.held[l.host] -= l.memory(); a.held[l.host] == 0 {
		delete(a.held, l.host)
	}
}

// oldestOf is the attempt of a host whose record was not used for the longest
// time, but for one.
func (a *Authority) oldestOf(host, but string) (oldest string) {
	for id, l := range a.live {
		if l.host == host && id != but && (oldest == "" || l.used.Before(a.live[oldest].used)) {
			oldest = id
		}
	}
	return oldest
}

// memory is how many bytes all records in memory take.
func (a *Authority) memory() (n float64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, held := range a.held {
		n += float64(held)
	}
	return n
}

// memory is about how many bytes l takes.
func (l *live) memory() int64 { return int64(cap(l.hashes))*sha256.Size + 256 }

func (a *Authority) forget(attempt string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(attempt)
}

// forgetIdle lets records go that nobody asked for lately. A call that holds
// one keeps its own reference.
func (a *Authority) forgetIdle() {
	before := a.now().Add(-idleAfter)
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, l := range a.live {
		if l.used.Before(before) {
			a.drop(id)
		}
	}
}

// entries reads a whole record for a statement.
func (a *Authority) entries(ctx context.Context, attempt string) ([]record.Entry, error) {
	data, err := a.cfg.Store.Record(ctx, attempt)
	if err != nil {
		return nil, err
	}
	entries, _, err := record.Read(bytes.NewReader(data))
	return entries, err
}
