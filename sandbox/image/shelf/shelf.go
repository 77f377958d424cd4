// Package shelf remembers what images' names meant on this host and who has shown that he may have them.
//
// An image that is here is of use to a job that does not want to ask the
// registry for it. But that it is here says nothing of the job: another tenant's
// login may have brought it. So the shelf keeps, for each image, the logins under
// which its registry gave it out, as keyed digests, and for how long that is to
// be believed. Nobody's login stands for everyone: an image that was given to
// nobody in particular is public. Who has not shown that he may have the image
// must ask the registry, and is told nothing else about what is here.
//
// The file is a convenience: without it every image is asked for once more.
// Who can read it learns which images were used here, and can test whether a
// guessed password was; who can write it can hand images to jobs that may not
// have them.
package shelf

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/image/auth"
)

// ShownFor is how long a registry's consent holds. What it takes back later it
// has taken back here after that.
const ShownFor = 24 * time.Hour

// Limits of what is remembered: the oldest goes first.
const (
	maxItems  = 2048
	maxLogins = 64 // of one image
	maxFile   = 32 << 20
)

const version = 1

// A Shelf is safe for concurrent use.
type Shelf struct {
	path string
	now  func() time.Time

	mu    sync.Mutex
	state state
}

type state struct {
	Version int              `json:"version"`
	Key     []byte           `json:"key"`   // of the digests of logins
	Items   map[string]*item `json:"items"` // by name and platform
}

type item struct {
	Image image.Image          `json:"image"`
	Found time.Time            `json:"found"`
	Shown map[string]time.Time `json:"shown"` // by digest of a login
}

// Open reads what an earlier run remembered. A file that makes no sense is an
// error beside an empty Shelf that can be used.
func Open(path string, now func() time.Time) (*Shelf, error) {
	s := &Shelf{path: path, now: now}
	err := s.load()
	if err != nil || s.state.Version == 0 {
		s.state = state{Version: version, Key: make([]byte, sha256.Size), Items: map[string]*item{}}
		_, _ = rand.Read(s.state.Key) // never fails
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func (s *Shelf) load() error {
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return err
	}
	return s.state.parse(data)
}

func (st *state) parse(data []byte) error {
	if len(data) > maxFile {
		return fmt.Errorf("larger than %d bytes", maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(st); err != nil {
		return errors.New("not what was written there")
	}
	if st.Version != version || len(st.Key) != sha256.Size {
		return errors.New("of another version")
	}
	if st.Items == nil {
		st.Items = map[string]*item{}
	}
	for key, i := range st.Items {
		if i == nil || keyOf(i.Image.Name, i.Image.Platform) != key || i.Image.Reference == "" {
			return errors.New("not what was written there")
		}
	}
	return nil
}

func keyOf(name, platform string) string { return name + " " + platform }

// Put remembers what a name meant for the holder of a login, to whom the
// registry has just given it.
func (s *Shelf) Put(img image.Image, login auth.Login) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := keyOf(img.Name, img.Platform)
	i := s.state.Items[key]
	if i == nil || i.Image.Reference != img.Reference {
		i = &item{Shown: map[string]time.Time{}}
		s.state.Items[key] = i
	}
	i.Image, i.Found = img, s.now()
	if i.Shown == nil {
		i.Shown = map[string]time.Time{}
	}
	i.Shown[s.who(img, login)] = s.now()
	shorten(i.Shown, maxLogins, func(t time.Time) time.Time { return t })
	shorten(s.state.Items, maxItems, func(i *item) time.Time { return i.Found })
	return s.save()
}

// Find is what a name meant when it was last asked for. The caller has yet to
// learn whether the image is still here, and Shown whether it may be told so.
func (s *Shelf) Find(name, platform string) (image.Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.state.Items[keyOf(name, platform)]
	if i == nil {
		return image.Image{}, false
	}
	return i.Image, true
}

// Shown reports whether the holder of the login has shown, not long ago, that
// the registry gives him this image.
func (s *Shelf) Shown(img image.Image, login auth.Login) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.state.Items[keyOf(img.Name, img.Platform)]
	if i == nil || i.Image.Reference != img.Reference {
		return false
	}
	for _, who := range []string{s.who(img, login), s.who(img, auth.Login{})} {
		if t, ok := i.Shown[who]; ok && s.now().Sub(t) < ShownFor {
			return true
		}
	}
	return false
}

// who is a login's digest. Without the key a password could be guessed from it.
func (s *Shelf) who(img image.Image, l auth.Login) string {
	if l.Anonymous() {
		return "anyone"
	}
	registry, _, _ := strings.Cut(img.Reference, "/")
	mac := hmac.New(sha256.New, s.state.Key)
	for _, part := range []string{registry, l.User, l.Password, l.IdentityToken} {
		_, _ = fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// shorten drops what is oldest beyond a number.
func shorten[V any](m map[string]V, most int, when func(V) time.Time) {
	if len(m) <= most {
		return
	}
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int { return when(m[a]).Compare(when(m[b])) })
	for _, k := range keys[:len(m)-most] {
		delete(m, k)
	}
}

// save writes the file whole. It is not synced: what a crash takes is asked for
// again.
func (s *Shelf) save() error {
	data, err := json.Marshal(s.state)
	if err != nil {
		return err
	}
	tmp := s.path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.path)
}
