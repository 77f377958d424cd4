package sign_test

import (
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/sign/key/keytest"
)

// TestKeysInAToken goes from a key in a file to one in a token and on to the next.
func TestKeysInAToken(t *testing.T) {
	token := keytest.New(t)
	r := newRing(t)
	old := signed(t, r.open())
	r.o.CAKey, r.o.TimestampKey = token.Generate("ca", "01"), token.Generate("timestamp", "02")
	if _, err := sign.Open(t.Context(), r.o); err == nil || !strings.Contains(err.Error(), "keys rotate") {
		t.Fatalf("not rotated to: %v", err)
	}
	r.rotate(sign.RoleCA, 0)
	r.rotate(sign.RoleTimestamp, 0)
	r.clock.forward(sign.Overlap * 2)
	s := r.open()
	fresh := signed(t, s)
	accepted(t, "by files", s, old)
	accepted(t, "by the token", s, fresh)
	r.o.CAKey = token.Generate("ca2", "03")
	next := r.rotate(sign.RoleCA, 0)
	b := signed(t, s)
	if issuedBy(t, b) != "Hallmark authority "+next.ID {
		t.Error("the open signer goes on with the old key")
	}
	accepted(t, "by the next key", s, b)
	accepted(t, "by the one before", s, fresh)
	if found, err := filepath.Glob(filepath.Join(r.o.Dir, "*.pem")); err != nil || len(found) != 0 {
		t.Errorf("private keys are left in files: %v, %v", found, err)
	}
}

// TestAnotherKeyInTheToken: a label can be given to another key.
func TestAnotherKeyInTheToken(t *testing.T) {
	r := newRing(t)
	first := keytest.New(t)
	r.o.CAKey = first.Generate("ca", "01")
	r.open()
	second := keytest.New(t) // has the same name, and takes its place
	second.Generate("ca", "01")
	if _, err := sign.Open(t.Context(), r.o); err == nil {
		t.Error("opened")
	}
}

// BenchmarkSignAtATime signs a small statement with everything that is built
// in, alone and as many authorities' jobs do.
func BenchmarkSignAtATime(b *testing.B) {
	token := keytest.New(b)
	for name, o := range map[string]sign.Options{
		"file":    {},
		"softhsm": {CAKey: token.Generate("ca", "01")},
		"both":    {CAKey: token.Generate("ca3", "03"), TimestampKey: token.Generate("timestamp", "02")},
	} {
		b.Run(name, func(b *testing.B) {
			o.Dir, o.Issuer = filepath.Join(b.TempDir(), "keys"), issuer
			s, err := sign.Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			st := statement(b, attesttest.Job(), builderID)
			for _, hosts := range []int{1, 8, 64} {
				b.Run("hosts="+strconv.Itoa(hosts), func(b *testing.B) {
					b.SetParallelism(max(1, hosts/runtime.GOMAXPROCS(0)))
					if hosts == 1 {
						for b.Loop() {
							if _, err := s.Sign(b.Context(), st); err != nil {
								b.Fatal(err)
							}
						}
					} else {
						b.RunParallel(func(pb *testing.PB) {
							for pb.Next() {
								if _, err := s.Sign(b.Context(), st); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "signatures/s")
				})
			}
		})
	}
}
