package sign_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/policy"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/sign/key"
	"hallmark.build/attest/verify"
)

// A clock can be moved.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now().Add(-100 * time.Hour).Truncate(time.Second)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A ring is a keyring with a clock of its own.
type ring struct {
	t     *testing.T
	clock *clock
	o     sign.Options
}

func newRing(t *testing.T) *ring {
	c := newClock()
	return &ring{t, c, sign.Options{Dir: filepath.Join(t.TempDir(), "keys"), Issuer: issuer, Now: c.now}}
}

func (r *ring) open() *sign.Signer {
	r.t.Helper()
	s, err := sign.Open(r.t.Context(), r.o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Close() })
	return s
}

func (r *ring) rotate(role sign.Role, after time.Duration) sign.Generation {
	r.t.Helper()
	g, err := sign.Rotate(r.t.Context(), r.o, role, after)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

func (r *ring) revoke(id string, lost time.Time) {
	r.t.Helper()
	if _, err := sign.Revoke(r.o, id, lost); err != nil {
		r.t.Fatal(err)
	}
}

// first is the oldest key of a role.
func (r *ring) first(role sign.Role) sign.Generation {
	r.t.Helper()
	all, err := sign.Generations(r.o.Dir)
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(g sign.Generation) bool { return g.Role == role })
	if i < 0 {
		r.t.Fatalf("no %s key", role)
	}
	return all[i]
}

// steal copies the keyring, as a thief would.
func (r *ring) steal() *ring {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "stolen")
	if err := os.CopyFS(dir, os.DirFS(r.o.Dir)); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Chmod(name, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	c := &clock{t: r.clock.now()}
	return &ring{r.t, c, sign.Options{Dir: dir, Issuer: issuer, Now: c.now}}
}

// both asks sigstore-go and our own verifier, which must agree.
func both(t *testing.T, s *sign.Signer, b []byte) error {
	t.Helper()
	theirs := check(s, b, builderID, issuer, "content")
	text, err := rootOf(s)
	if err != nil {
		t.Fatal(err)
	}
	opened := attesttest.Opened()
	pol, err := policy.Parse([]byte(fmt.Sprintf("builder_ids = %q\nissuer = %q\nsource = %q\nref = %q\n",
		builderID, issuer, opened.External.Source, opened.External.Ref)))
	if err != nil {
		t.Fatal(err)
	}
	v := verify.Artifact(t.Context(), sha256.Sum256([]byte("content")), "app", [][]byte{b}, pol, text)
	ours := ""
	for _, c := range v.Checks {
		if c.Status == verify.Fail && c.Name != "time" { // the clocks here are not the job's
			ours += c.Name + ": " + c.Detail + "; "
		}
	}
	if (ours == "") != (theirs == nil) {
		t.Errorf("sigstore-go: %v; ours: %s", theirs, ours)
	}
	return theirs
}

func accepted(t *testing.T, what string, s *sign.Signer, b []byte) {
	t.Helper()
	if err := both(t, s, b); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func refused(t *testing.T, what string, s *sign.Signer, b []byte) {
	t.Helper()
	if both(t, s, b) == nil {
		t.Errorf("%s: accepted", what)
	}
}

func issuedBy(t *testing.T, b []byte) string {
	t.Helper()
	var parsed bundle.Bundle
	if err := parsed.UnmarshalJSON(b); err != nil {
		t.Fatal(err)
	}
	content, err := parsed.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	return content.Certificate().Issuer.CommonName
}

func TestRotation(t *testing.T) {
	for _, role := range []sign.Role{sign.RoleCA, sign.RoleTimestamp} {
		t.Run(string(role), func(t *testing.T) {
			r := newRing(t)
			before, replica := r.open(), r.open()
			old := signed(t, before)
			oldRoot, err := rootOf(before)
			if err != nil {
				t.Fatal(err)
			}
			r.clock.forward(time.Hour)
			made := r.rotate(role, 0)
			fresh := signed(t, replica)
			if role == sign.RoleCA && issuedBy(t, fresh) != "Hallmark authority "+made.ID {
				t.Error("the open signer goes on with the old key")
			}
			for name, s := range map[string]*sign.Signer{"open before": before, "replica": replica, "opened after": r.open()} {
				accepted(t, name+": old", s, old)
				accepted(t, name+": new", s, fresh)
			}
			if checkRoot(oldRoot, fresh, builderID, issuer, "content") == nil {
				t.Error("the trusted root from before accepts the new key")
			}
			r.clock.forward(1000 * time.Hour)
			accepted(t, "long after", r.open(), old)
		})
	}
}

// TestAnnouncedKeySignsFromItsTime: until then the old one does, and readers
// have time to learn of the new one.
func TestAnnouncedKeySignsFromItsTime(t *testing.T) {
	r := newRing(t)
	s := r.open()
	first := r.first(sign.RoleCA)
	next := r.rotate(sign.RoleCA, 24*time.Hour)
	for _, tt := range []struct {
		forward time.Duration
		want    sign.Generation
	}{{0, first}, {24*time.Hour - time.Second, first}, {time.Second, next}, {100 * 24 * time.Hour, next}} {
		r.clock.forward(tt.forward)
		b := signed(t, s)
		if have := issuedBy(t, b); have != "Hallmark authority "+tt.want.ID {
			t.Errorf("after %s more: by %s, want %s", tt.forward, have, tt.want.ID)
		}
		accepted(t, tt.forward.String(), s, b)
	}
	if _, err := sign.Rotate(t.Context(), r.o, sign.RoleCA, 24*time.Hour); err != nil {
		t.Errorf("once it has begun: %v", err)
	}
	if _, err := sign.Rotate(t.Context(), r.o, sign.RoleCA, time.Hour); err == nil {
		t.Error("a second announcement: taken")
	}
}

// TestNextKeyOutOfReach: the key that signs goes on while the next one's token is
// away, as long as it may.
func TestNextKeyOutOfReach(t *testing.T) {
	r := newRing(t)
	s := r.open()
	first := r.first(sign.RoleCA)
	file := filepath.Join(t.TempDir(), "next.pem")
	_, text, err := key.Generate()
	if err != nil {
		t.Fatal(err)
	}
	plug := func() {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plug()
	r.o.CAKey = key.FileURI(file)
	next := r.rotate(sign.RoleCA, 24*time.Hour)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, forward := range []time.Duration{time.Hour, 23 * time.Hour, sign.Overlap} {
		r.clock.forward(forward)
		for name, s := range map[string]*sign.Signer{"open before": s, "opened after": r.open()} {
			if have := issuedBy(t, signed(t, s)); have != "Hallmark authority "+first.ID {
				t.Errorf("after %s more: %s: by %s, want %s", forward, name, have, first.ID)
			}
		}
	}
	r.clock.forward(time.Second)
	if _, err := s.Sign(t.Context(), statement(t, attesttest.Job(), builderID)); err == nil || !strings.Contains(err.Error(), next.ID) {
		t.Errorf("once the first may not: %v", err)
	}
	plug()
	r.clock.forward(time.Minute)
	if have := issuedBy(t, signed(t, s)); have != "Hallmark authority "+next.ID {
		t.Errorf("once it is back: by %s, want %s", have, next.ID)
	}
}

// TestKeysOutsideTheirWindows signs with copies of keys at the edges of what the
// trusted root says of them.
func TestKeysOutsideTheirWindows(t *testing.T) {
	for _, role := range []sign.Role{sign.RoleCA, sign.RoleTimestamp} {
		t.Run(string(role), func(t *testing.T) {
			r := newRing(t)
			s := r.open()
			start := r.clock.now()
			// The other role's key began long before, so that one window alone counts.
			thief := r.steal()
			r.clock.forward(time.Hour)
			r.rotate(role, 0)
			end := r.clock.now().Add(sign.Overlap)
			for _, tt := range []struct {
				name string
				at   time.Time
				good bool
			}{
				{"at the start", start, true},
				{"at the rotation", r.clock.now(), true},
				{"at the end", end, true},
				{"a second after the end", end.Add(time.Second), false},
				{"a year after the end", end.Add(365 * 24 * time.Hour), false},
			} {
				thief.clock.t = tt.at
				b := signed(t, thief.open())
				if tt.good {
					accepted(t, tt.name, s, b)
				} else {
					refused(t, tt.name, s, b)
				}
			}
			thief.clock.t = start.Add(-time.Second)
			if _, err := thief.open().Sign(t.Context(), statement(t, job(), builderID)); err == nil {
				t.Error("before the start: signed")
			}
		})
	}
}

func TestRetiredKeysAreRemoved(t *testing.T) {
	r := newRing(t)
	s := r.open()
	old := r.first(sign.RoleCA)
	file := filepath.Join(r.o.Dir, old.ID+".pem")
	r.rotate(sign.RoleCA, 0)
	if _, err := os.Stat(file); err != nil {
		t.Errorf("in the overlap: %v", err)
	}
	r.clock.forward(sign.Overlap + time.Second)
	r.rotate(sign.RoleTimestamp, 0)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after it: %v", err)
	}
	accepted(t, "signing goes on", s, signed(t, s))
	reopened := r.open()
	accepted(t, "and after a restart", reopened, signed(t, reopened))
}

// TestKeyThatACrashLeft is in no keyring, and goes with the next change of it.
func TestKeyThatACrashLeft(t *testing.T) {
	r := newRing(t)
	s := r.open()
	left := filepath.Join(r.o.Dir, "ca-0123456789abcdef.pem")
	other := filepath.Join(r.o.Dir, "log.pem") // of somebody else
	for _, name := range []string{left, other} {
		if err := os.WriteFile(name, []byte("a key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	accepted(t, "signing goes on", s, signed(t, s))
	r.rotate(sign.RoleTimestamp, 0)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("what is not ours: %v", err)
	}
	accepted(t, "and after", s, signed(t, s))
}

// TestDrill is the one of the package comment, under "When a key is lost".
func TestDrill(t *testing.T) {
	type theft struct {
		r             *ring
		s             *sign.Signer
		early, late   []byte // ours, from before the loss and after it
		thief         *ring
		lost          time.Time
		oldCA, oldTSA string
	}
	steal := func(t *testing.T) theft {
		r := newRing(t)
		s := r.open()
		out := theft{r: r, s: s, early: signed(t, s), oldCA: r.first(sign.RoleCA).ID, oldTSA: r.first(sign.RoleTimestamp).ID}
		r.clock.forward(time.Hour)
		out.lost, out.thief = r.clock.now(), r.steal()
		r.clock.forward(time.Hour)
		out.late = signed(t, s)
		return out
	}
	forge := func(t *testing.T, x theft, at time.Time) []byte {
		x.thief.clock.t = at
		return signed(t, x.thief.open())
	}

	t.Run("certificate authority", func(t *testing.T) {
		x := steal(t)
		x.r.rotate(sign.RoleCA, 0)
		x.r.revoke(x.oldCA, x.lost)
		accepted(t, "signed before the loss", x.s, x.early)
		refused(t, "signed after the loss", x.s, x.late)
		accepted(t, "signed with the new key", x.s, signed(t, x.s))
		refused(t, "forged with a true timestamp", x.s, forge(t, x, x.r.clock.now()))
	})
	t.Run("timestamp authority", func(t *testing.T) {
		x := steal(t)
		x.r.rotate(sign.RoleTimestamp, 0)
		x.r.revoke(x.oldTSA, x.lost)
		accepted(t, "signed before the loss", x.s, x.early)
		refused(t, "signed after the loss", x.s, x.late)
		accepted(t, "signed with the new key", x.s, signed(t, x.s))
	})
	t.Run("both", func(t *testing.T) {
		x := steal(t)
		for _, role := range []sign.Role{sign.RoleCA, sign.RoleTimestamp} {
			x.r.rotate(role, 0)
		}
		x.r.revoke(x.oldCA, x.lost)
		x.r.revoke(x.oldTSA, x.lost)
		backdated := forge(t, x, x.lost.Add(-time.Minute))
		accepted(t, "backdated by whoever has both keys: no window can tell", x.s, backdated)
		x.r.revoke(x.oldCA, time.Time{})
		refused(t, "revoked altogether: backdated", x.s, backdated)
		refused(t, "revoked altogether: signed before the loss", x.s, x.early)
		accepted(t, "signed with the new keys", x.s, signed(t, x.s))
		root, err := x.s.Trusted()
		if err != nil || len(root.GetCertificateAuthorities()) != 1 || len(root.GetTimestampAuthorities()) != 2 {
			t.Errorf("%d certificate and %d timestamp authorities (%v)", len(root.GetCertificateAuthorities()), len(root.GetTimestampAuthorities()), err)
		}
	})
	t.Run("revoked, and nothing in its place", func(t *testing.T) {
		x := steal(t)
		x.r.revoke(x.oldCA, x.lost)
		if _, err := os.Stat(filepath.Join(x.r.o.Dir, x.oldCA+".pem")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the private key: %v", err)
		}
		_, err := x.s.Sign(t.Context(), statement(t, job(), builderID))
		if err == nil || !strings.Contains(err.Error(), "keys rotate ca") {
			t.Errorf("%v", err)
		}
		if _, err := sign.Open(t.Context(), x.r.o); err == nil {
			t.Error("a new key was made unasked")
		}
		x.r.rotate(sign.RoleCA, 0)
		accepted(t, "after the rotation", x.s, signed(t, x.s))
	})
}

func TestRevokingMakesNoWindowWider(t *testing.T) {
	r := newRing(t)
	r.open()
	r.clock.forward(10 * time.Hour)
	id, at := r.first(sign.RoleCA).ID, r.clock.now()
	for _, tt := range []struct{ lost, until time.Time }{
		{at.Add(-time.Hour), at.Add(-time.Hour)},
		{at, at.Add(-time.Hour)},
		{at.Add(-2 * time.Hour), at.Add(-2 * time.Hour)},
		{at.Add(-1000 * time.Hour), at.Add(-10 * time.Hour)},
		{at, at.Add(-10 * time.Hour)},
	} {
		g, err := sign.Revoke(r.o, id, tt.lost)
		if err != nil || !g.Until.Equal(tt.until) || !g.Revoked {
			t.Errorf("%s: until %s (%v), want %s", tt.lost, g.Until, err, tt.until)
		}
	}
	if r.first(sign.RoleCA).Trusted() {
		t.Error("a key without a window is trusted")
	}
	if _, err := sign.Revoke(r.o, id, at.Add(time.Hour)); err == nil {
		t.Error("a loss that is yet to come: taken")
	}
	if _, err := sign.Revoke(r.o, "ca-00", at); err == nil {
		t.Error("an unknown key: revoked")
	}
}

// TestKeyringIsDamagedWhileOpen: what cannot be read is not replaced by what
// was read before.
func TestKeyringIsDamagedWhileOpen(t *testing.T) {
	r := newRing(t)
	s := r.open()
	file := filepath.Join(r.o.Dir, "keyring.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"cut": good[:100], "empty": nil} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign(t.Context(), statement(t, job(), builderID)); err == nil {
			t.Errorf("%s: signed", name)
		}
		if _, err := s.Trusted(); err == nil {
			t.Errorf("%s: a trusted root", name)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), statement(t, job(), builderID)); err == nil {
		t.Error("gone: signed")
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	accepted(t, "repaired", s, signed(t, s))
}

// rotator is this test's binary as another process: see TestMain.
const rotator = "SIGN_TEST_ROTATE"

func TestMain(m *testing.M) {
	dir := os.Getenv(rotator)
	if dir == "" {
		os.Exit(m.Run())
	}
	for range 5 {
		if _, err := sign.Rotate(context.Background(), sign.Options{Dir: dir, Issuer: issuer}, sign.RoleCA, 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// TestProcessesRotate has several processes rotate at the same time, while
// others sign.
func TestProcessesRotate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s := open(t, dir, nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const processes = 4
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range processes {
		wg.Go(func() {
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), rotator+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	st := statement(t, job(), builderID)
	var bundles [][]byte
	for going := true; going; {
		select {
		case <-done:
			going = false
		default:
		}
		b, err := s.Sign(t.Context(), st)
		if err != nil {
			t.Fatalf("after %d signatures: %v", len(bundles), err)
		}
		bundles = append(bundles, b)
	}
	all, err := sign.Generations(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := processes*5 + 2; len(all) != want {
		t.Errorf("%d generations, want %d", len(all), want)
	}
	for _, b := range [][]byte{bundles[0], bundles[len(bundles)/2], bundles[len(bundles)-1]} {
		accepted(t, "signed meanwhile", s, b)
	}
}

// TestConfiguredKeyIsNotInUse: a key that the configuration names does not
// silently replace the one of the keyring, nor the other way round.
func TestConfiguredKeyIsNotInUse(t *testing.T) {
	r := newRing(t)
	r.open()
	mine := &ring{t, r.clock, r.o}
	mine.o.CAKey = keyURI(t)
	_, err := sign.Open(t.Context(), mine.o)
	if err == nil || !strings.Contains(err.Error(), "keys rotate ca") {
		t.Fatalf("%v", err)
	}
	mine.rotate(sign.RoleCA, 0)
	s := mine.open()
	accepted(t, "after rotating to it", s, signed(t, s))
	if _, err := sign.Rotate(t.Context(), mine.o, sign.RoleCA, 0); err == nil || !strings.Contains(err.Error(), "in the keyring already") {
		t.Errorf("the same key once more: %v", err)
	}
	r.clock.forward(sign.Overlap + time.Second)
	if _, err := sign.Open(t.Context(), r.o); err == nil {
		t.Error("the configuration without it: opened")
	}
}
