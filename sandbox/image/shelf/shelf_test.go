package shelf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/image/auth"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func made(name, digest string) image.Image {
	return image.Image{Name: name, Platform: "linux/amd64", Reference: "r.example/a@sha256:" + digest, Manifest: "sha256:" + digest}
}

func open(t *testing.T, c *clock) (*Shelf, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "images.json")
	s, err := Open(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return s, path
}

var (
	nobody  = auth.Login{}
	alice   = auth.Login{User: "alice", Password: "sesame"}
	mallory = auth.Login{User: "mallory", Password: "guess"}
)

func TestShownToThoseAlone(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	s, path := open(t, c)
	private, public := made("r.example/a:1", "01"), made("r.example/b:1", "02")
	for img, l := range map[image.Image]auth.Login{private: alice, public: nobody} {
		if err := s.Put(img, l); err != nil {
			t.Fatal(err)
		}
	}
	other := private
	other.Reference = "s.example/a@sha256:01"
	moved := made("r.example/a:1", "03")
	check := func(s *Shelf, when string, fresh bool) {
		t.Helper()
		for _, q := range []struct {
			what string
			img  image.Image
			l    auth.Login
			want bool
		}{
			{"private to its holder", private, alice, fresh},
			{"private to nobody", private, nobody, false},
			{"private to another", private, mallory, false},
			{"private to the name alone", private, auth.Login{User: "alice"}, false},
			{"private to shifted words", private, auth.Login{User: "alices", Password: "esame"}, false},
			{"private to the password as token", private, auth.Login{IdentityToken: "sesame"}, false},
			{"public to nobody", public, nobody, fresh},
			{"public to anyone", public, mallory, fresh},
			{"another registry's", other, alice, false},
			{"the name's next image", moved, alice, false},
			{"an unknown one", made("r.example/z:1", "09"), alice, false},
		} {
			if got := s.Shown(q.img, q.l); got != q.want {
				t.Errorf("%s: %s: %v", when, q.what, got)
			}
		}
	}
	check(s, "at once", true)
	again, err := Open(path, c.now)
	if err != nil {
		t.Fatal(err)
	}
	check(again, "after a restart", true)
	c.t = c.t.Add(ShownFor)
	check(again, "a day later", false)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(raw), "sesame") || strings.Contains(string(raw), "alice") {
		t.Error("the file has a login in it")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestFindIsTheLatest(t *testing.T) {
	s, _ := open(t, &clock{time.Unix(1e9, 0)})
	for _, digest := range []string{"01", "02"} {
		if err := s.Put(made("r.example/a:1", digest), alice); err != nil {
			t.Fatal(err)
		}
	}
	img, ok := s.Find("r.example/a:1", "linux/amd64")
	if !ok || img.Manifest != "sha256:02" {
		t.Errorf("%+v, %v", img, ok)
	}
	if s.Shown(made("r.example/a:1", "01"), alice) {
		t.Error("the name still stands for its earlier image")
	}
	if _, ok := s.Find("r.example/a:1", "linux/arm64"); ok {
		t.Error("found for another platform")
	}
}

func TestShelfIsBounded(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	s, path := open(t, c)
	s.path = os.DevNull + "/none" // written once, at the end
	put := func(img image.Image, l auth.Login) {
		c.t = c.t.Add(time.Millisecond)
		_ = s.Put(img, l)
	}
	for i := range maxLogins + 5 {
		put(made("r.example/a:1", "01"), auth.Login{User: fmt.Sprint(i)})
	}
	if s.Shown(made("r.example/a:1", "01"), auth.Login{User: "0"}) || !s.Shown(made("r.example/a:1", "01"), auth.Login{User: fmt.Sprint(maxLogins)}) {
		t.Error("not the oldest login went")
	}
	for i := range maxItems {
		s.state.Items[fmt.Sprint(i)] = &item{}
	}
	s.path = path
	put(made("r.example/b:1", "02"), nobody)
	if n := len(s.state.Items); n != maxItems {
		t.Errorf("%d items", n)
	}
	if _, ok := s.Find("r.example/b:1", "linux/amd64"); !ok {
		t.Error("the newest went")
	}
}

func TestDamagedFileIsForgotten(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":      `{`,
		"unknown field": `{"version":1,"key":"","more":1}`,
		"other version": `{"version":2}`,
		"short key":     `{"version":1,"key":"AAAA","items":{}}`,
		"null item":     `{"version":1,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","items":{"a b":null}}`,
		"wrong key":     `{"version":1,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","items":{"a b":{"image":{"Name":"c","Platform":"b","Reference":"x"}}}}`,
	} {
		path := filepath.Join(t.TempDir(), "images.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, time.Now)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := s.Put(made("r.example/a:1", "01"), alice); err != nil || !s.Shown(made("r.example/a:1", "01"), alice) {
			t.Errorf("%s: cannot be used: %v", name, err)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","items":{"a b":{"image":{"Name":"a","Platform":"b","Reference":"x"},"shown":null}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &Shelf{now: time.Now, path: os.DevNull + "/none"}
		if s.state.parse(data) != nil {
			return
		}
		for _, i := range s.state.Items {
			_ = s.Shown(i.Image, mallory)
			_ = s.Put(i.Image, mallory)
			if !s.Shown(i.Image, mallory) {
				t.Error("put, and not shown")
			}
		}
	})
}
