// Package blocks reads uploads of one object in blocks, as the kit sends them by
// which GitLab Runner's helper speaks to Azure and S3.
//
// A block that the store has is nothing that anybody sees: the object appears
// with the request that lists its blocks. So blocks pass, a copy of each stays
// here, and the list is held back until the object that it makes is known to be
// one that may be stored.
package blocks

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A File is where blocks are kept.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// A Staged is the blocks of one object that the store has and nobody sees. It is
// safe for concurrent use.
type Staged struct {
	file  File
	limit int64

	mu     sync.Mutex
	end    int64
	taken  int
	blocks map[string]block
}

type block struct {
	at, size     int64
	sha256, etag string
}

// Stage keeps blocks in a file, which becomes the Staged's own. The limit is in
// bytes, of all that is ever put there.
func Stage(file File, limit int64) *Staged {
	return &Staged{file: file, limit: limit, blocks: map[string]block{}}
}

// ErrFull says that blocks take more room than the object may.
var ErrFull = errors.New("the blocks take more room than the object may")

// Take makes room for a block. What the object had under its id is forgotten at
// once: whether the store has the old one or the new one is not known before the
// store has answered, and Keep is called.
func (s *Staged) Take(id string, size int64) (*Room, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size < 0 || size > s.limit-s.end || s.taken >= MaxBlocks {
		return nil, ErrFull
	}
	delete(s.blocks, id)
	r := &Room{s: s, id: id, at: s.end, size: size}
	s.end += size
	s.taken++
	return r, nil
}

// A Room is the place of one block.
type Room struct {
	s        *Staged
	id       string
	at, size int64
}

// Writer fills the place from its beginning.
func (r *Room) Writer() io.Writer { return io.NewOffsetWriter(r.s.file, r.at) }

// Reader reads the place.
func (r *Room) Reader() *io.SectionReader { return io.NewSectionReader(r.s.file, r.at, r.size) }

// Keep says that the store has the block: the digest of what was sent, and the
// name by which the store knows it, if any.
func (r *Room) Keep(sha256, etag string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.blocks[r.id] = block{at: r.at, size: r.size, sha256: sha256, etag: etag}
}

// Assemble writes the object that a list makes of the blocks. A block that was
// not seen here, or that the store knows by another name, is refused before a
// byte is written.
func (s *Staged) Assemble(w io.Writer, list []Ref) (int64, error) {
	found, err := s.find(list)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, b := range found {
		sum := sha256.New()
		m, err := io.Copy(io.MultiWriter(w, sum), io.NewSectionReader(s.file, b.at, b.size))
		n += m
		if err != nil {
			return n, fmt.Errorf("staged blocks: %w", err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != b.sha256 {
			return n, errors.New("staged blocks: one is no longer what the store was sent")
		}
	}
	return n, nil
}

func (s *Staged) find(list []Ref) ([]block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make([]block, len(list))
	var size int64
	for i, ref := range list {
		b, ok := s.blocks[ref.ID]
		if !ok {
			return nil, malformed("block %q is none that this stage of the job has sent", clip(ref.ID))
		}
		if b.etag != ref.ETag {
			return nil, malformed("block %q is not the one that the store took", clip(ref.ID))
		}
		// A block may be listed more than once.
		if size += b.size; size > s.limit {
			return nil, ErrFull
		}
		found[i] = b
	}
	return found, nil
}

// Close gives the room back.
func (s *Staged) Close() error { return s.file.Close() }
