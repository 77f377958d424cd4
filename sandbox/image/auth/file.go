package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"
)

// Limits of a file of logins.
const (
	maxFile    = 256 << 10 // bytes
	maxEntries = 512
	maxKey     = 1 << 10  // bytes of a registry's name
	maxSecret  = 16 << 10 // bytes of a user, password or token
	maxDepth   = 16
)

// A File is what Docker's config.json says of logins.
type File struct {
	logins  map[string]Login
	helpers map[string]helper
	store   helper
}

// Read reads the admin's file. Programs that it names will be run, so it is
// refused where others than root and this program's user can write it.
func Read(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return File{}, fmt.Errorf("%s: want a file that nobody but root can write", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return File{}, err
	}
	file, err := Parse(data)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

// Programs lists the credential helpers that the file names.
func (f File) Programs() []string {
	names := map[string]bool{}
	for _, h := range f.helpers {
		names[h.program] = true
	}
	if f.store.program != "" {
		names[f.store.program] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// helperForm keeps a helper's name to one element of a path.
var helperForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Parse reads the form of Docker's config.json. The file holds much that is no
// matter of ours, so fields that are not known are passed over; a name that
// stands twice is refused, as it means one thing to one reader and another to
// the next. Errors never hold a value.
func Parse(data []byte) (File, error) {
	if len(data) > maxFile {
		return File{}, fmt.Errorf("larger than %d bytes", maxFile)
	}
	if err := plain(data); err != nil {
		return File{}, err
	}
	var doc struct {
		Auths       map[string]entry  `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return File{}, errors.New("not in the form of Docker's config.json")
	}
	if len(doc.Auths)+len(doc.CredHelpers) > maxEntries {
		return File{}, fmt.Errorf("more than %d registries", maxEntries)
	}
	f := File{logins: map[string]Login{}, helpers: map[string]helper{}}
	// In order, so that of two names for one registry always the same wins.
	for i, name := range slices.Sorted(maps.Keys(doc.Auths)) {
		path, err := checkedPath(name)
		if err != nil {
			return File{}, err
		}
		l, err := doc.Auths[name].login()
		if err != nil {
			return File{}, fmt.Errorf("entry %d of auths: %w", i+1, err)
		}
		if _, there := f.logins[path]; !there && !l.Anonymous() {
			f.logins[path] = l
		}
	}
	for _, name := range slices.Sorted(maps.Keys(doc.CredHelpers)) {
		path, err := checkedPath(name)
		if err != nil {
			return File{}, err
		}
		if !helperForm.MatchString(doc.CredHelpers[name]) {
			return File{}, errors.New("credHelpers: not a helper's name")
		}
		f.helpers[path] = helper{program: doc.CredHelpers[name], server: name}
	}
	if doc.CredsStore != "" && !helperForm.MatchString(doc.CredsStore) {
		return File{}, errors.New("credsStore: not a helper's name")
	}
	f.store = helper{program: doc.CredsStore}
	return f, nil
}

func checkedPath(name string) (string, error) {
	if name == "" || len(name) > maxKey || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("a registry's name is empty, too long, or not of plain letters")
	}
	path := pathOf(name)
	if path == "" {
		return "", errors.New("a registry's name has no host")
	}
	return path, nil
}

// An entry is one registry's in auths.
type entry struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

func (e entry) login() (Login, error) {
	l := Login{User: e.Username, Password: e.Password, IdentityToken: e.IdentityToken}
	if e.Auth != "" {
		if len(e.Auth) > 2*maxSecret {
			return Login{}, errors.New("auth is too long")
		}
		raw, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			raw, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		if err != nil {
			return Login{}, errors.New("auth is not base64")
		}
		user, password, ok := strings.Cut(string(raw), ":")
		if !ok || user == "" {
			return Login{}, errors.New("auth is not the base64 of user:password")
		}
		l.User, l.Password = user, strings.Trim(password, "\x00")
	}
	return l, l.check()
}

// check refuses what could not be sent, or would end a header early.
func (l Login) check() error {
	for _, s := range []string{l.User, l.Password, l.IdentityToken} {
		if len(s) > maxSecret {
			return fmt.Errorf("a user, password or token is longer than %d bytes", maxSecret)
		}
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return errors.New("a user, password or token has control characters")
		}
	}
	if l.User == "" && l.Password != "" {
		return errors.New("a password without a user")
	}
	return nil
}

// plain refuses what encoding/json would take and others read otherwise: names
// that stand twice, in whatever case, more than one value, deep nesting.
func plain(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := value(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("not one JSON value")
	}
	return nil
}

func value(d *json.Decoder, depth int) error {
	tok, err := d.Token()
	if err != nil {
		return errors.New("not valid JSON")
	}
	open, nested := tok.(json.Delim)
	if !nested {
		return nil
	}
	if depth == maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	names := map[string]bool{}
	for d.More() {
		if open == '{' {
			key, err := d.Token()
			if err != nil {
				return errors.New("not valid JSON")
			}
			name := strings.ToLower(key.(string)) // an object's keys are strings
			if names[name] {
				return errors.New("a name stands twice in one object")
			}
			names[name] = true
		}
		if err := value(d, depth+1); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errors.New("not valid JSON")
	}
	return nil
}
