package workspace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/pjbgf/sha1cd"
)

// A objectID is a git object id, raw.
type objectID string

func (id objectID) String() string { return hex.EncodeToString([]byte(id)) }

// An algorithm is a repository's object format.
type algorithm struct {
	name string
	size int // bytes of an id
	new  func() hash.Hash
}

// parseAlgorithm knows GitLab's repo_object_format. An empty one is what older
// servers send for the only format that they have.
func parseAlgorithm(name string) (algorithm, error) {
	switch name {
	case "sha1", "":
		return algorithm{"sha1", 20, sha1cd.New}, nil
	case "sha256":
		return algorithm{"sha256", sha256.Size, sha256.New}, nil
	}
	return algorithm{}, fmt.Errorf("object format %q: want sha1 or sha256", name)
}

// parseID takes a full id in lower-case hex.
func (a algorithm) parseID(s string) (objectID, error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != a.size || strings.ToLower(s) != s {
		return "", fmt.Errorf("object id %q: want %d lower-case hex digits", s, 2*a.size)
	}
	return objectID(raw), nil
}

// errCollision says that bytes were crafted to share their SHA-1 with others.
var errCollision = errors.New("SHA-1 collision attack")

// begin starts the hash of an object.
func (a algorithm) begin(kind string, size int64) hash.Hash {
	h := a.new()
	h.Write([]byte(kind + " " + strconv.FormatInt(size, 10) + "\x00"))
	return h
}

// end is the id of what was written to a hash that begin made.
func end(h hash.Hash) (objectID, error) {
	if cd, ok := h.(sha1cd.CollisionResistantHash); ok {
		sum, collision := cd.CollisionResistantSum(nil)
		if collision {
			return "", errCollision
		}
		return objectID(sum), nil
	}
	return objectID(h.Sum(nil)), nil
}

func (a algorithm) id(kind string, data []byte) (objectID, error) {
	h := a.begin(kind, int64(len(data)))
	h.Write(data)
	return end(h)
}

// Kinds of objects, by their names in an object's header.
const (
	kindCommit = "commit"
	kindTree   = "tree"
	kindBlob   = "blob"
	kindTag    = "tag"
)

// parseCommit returns the tree that a commit names. The tree stands first,
// always.
func parseCommit(a algorithm, data []byte) (objectID, error) {
	line, _, ok := bytes.Cut(data, []byte("\n"))
	id, isTree := bytes.CutPrefix(line, []byte("tree "))
	if !ok || !isTree {
		return "", errors.New("commit: does not begin with a tree")
	}
	tree, err := a.parseID(string(id))
	if err != nil {
		return "", fmt.Errorf("commit: tree: %w", err)
	}
	return tree, nil
}

// Modes that git gives the entries of a tree.
const (
	modeTree       = 0o040000
	modeFile       = 0o100644
	modeExecutable = 0o100755
	modeSymlink    = 0o120000
	modeGitlink    = 0o160000
)

type treeEntry struct {
	name string
	mode uint32 // one of the five
	id   objectID
}

// parseTree reads a tree. Old modes of regular files (100664) are read as what
// git checks out for them.
func parseTree(a algorithm, data []byte) ([]treeEntry, error) {
	var out []treeEntry
	for len(data) > 0 {
		space := bytes.IndexByte(data, ' ')
		if space < 1 || space > 7 {
			return nil, errors.New("tree: entry without a mode")
		}
		mode, err := strconv.ParseUint(string(data[:space]), 8, 32)
		if err != nil {
			return nil, errors.New("tree: mode is not octal")
		}
		data = data[space+1:]
		zero := bytes.IndexByte(data, 0)
		if zero < 1 || len(data) < zero+1+a.size {
			return nil, errors.New("tree: cut off")
		}
		e := treeEntry{name: string(data[:zero]), id: objectID(data[zero+1 : zero+1+a.size])}
		if e.mode, err = canonicalMode(uint32(mode)); err != nil {
			return nil, err
		}
		if e.name == "." || e.name == ".." || e.name == dotGit || strings.IndexByte(e.name, '/') >= 0 {
			return nil, fmt.Errorf("tree: an entry named %q", e.name)
		}
		out = append(out, e)
		data = data[zero+1+a.size:]
	}
	return out, nil
}

// dotGit is never part of a tree.
const dotGit = ".git"

func canonicalMode(mode uint32) (uint32, error) {
	switch mode & 0o170000 {
	case modeTree, modeSymlink, modeGitlink:
		return mode & 0o170000, nil
	case 0o100000:
		if mode&0o100 != 0 {
			return modeExecutable, nil
		}
		return modeFile, nil
	}
	return 0, fmt.Errorf("tree: mode %o", mode)
}

// appendTreeEntry writes an entry as git does.
func appendTreeEntry(to []byte, mode uint32, name string, id objectID) []byte {
	to = strconv.AppendUint(to, uint64(mode), 8)
	to = append(to, ' ')
	to = append(to, name...)
	to = append(to, 0)
	return append(to, id...)
}

// treeKey orders the entries of a tree: a directory sorts as if its name ended
// in a slash.
func treeKey(name string, directory bool) string {
	if directory {
		return name + "/"
	}
	return name
}
