package host

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
)

// library is an authority that knows the outputs of one job.
type library struct {
	fakeAuthority
	job     int64
	digests []string
	silent  int // calls without an answer that come first
	calls   int
}

var libraryOrigin = Origin{Bundle: strings.Repeat("b", 64), Invocation: "https://ci.example.com/hallmark/attempts/7", Project: "group/project", Job: 7}

func (l *library) Provenance(_ context.Context, _, sha256 string, job int64) ([]Origin, error) {
	l.calls++
	if l.calls <= l.silent {
		return nil, &UnavailableError{errors.New("nobody there")}
	}
	if job != l.job || sha256 != "" && !strings.Contains(strings.Join(l.digests, " "), sha256) {
		return nil, nil
	}
	return []Origin{libraryOrigin}, nil
}

// TestVouched: an attested job's artifacts are what it made, or are refused; only
// for those of other jobs does the admin decide.
func TestVouched(t *testing.T) {
	known, other := strings.Repeat("1", 64), strings.Repeat("2", 64)
	for name, c := range map[string]struct {
		job         int64
		sha256      string
		silent      int
		refuse      bool
		attestation string
		log, err    string
		kind        any
	}{
		"attested":                {7, known, 0, false, libraryOrigin.Bundle, "artifacts of build (job 7): attested by " + libraryOrigin.Invocation, "", nil},
		"attested, to refuse":     {7, known, 0, true, libraryOrigin.Bundle, "attested by " + libraryOrigin.Invocation, "", nil},
		"replaced":                {7, other, 0, false, "", "", "GitLab hands out sha256:" + other, &sandbox.SecurityError{}},
		"replaced, to refuse":     {7, other, 0, true, "", "", "GitLab hands out sha256:" + other, &sandbox.SecurityError{}},
		"not attested":            {8, known, 0, false, "", "artifacts of other (job 8): not attested", "", nil},
		"not attested, to refuse": {8, known, 0, true, "", "", "artifacts of other (job 8): not attested", &sandbox.UserError{}},
		"after a silence":         {7, known, 1, false, libraryOrigin.Bundle, "attested by", "", nil},
		"silence for good":        {7, known, 1000, false, "", "", "nobody there", &UnavailableError{}},
		"silence, to refuse":      {8, known, 1000, true, "", "", "nobody there", &UnavailableError{}},
	} {
		t.Run(name, func(t *testing.T) {
			a := &library{job: 7, digests: []string{known}, silent: c.silent}
			h := &Host{cfg: Config{RefuseUnattested: c.refuse}, authority: a}
			j := &job{payload: &executor.Job{Dependencies: []executor.Dependency{{ID: 7, Name: "build"}, {ID: 8, Name: "other"}}}, pump: &pump{}}
			if c.silent == 1 {
				j.pump.patience = patience
			}
			_, attestation, err := h.vouched(t.Context(), j, c.job, c.sha256)
			if attestation != c.attestation {
				t.Errorf("attestation %q", attestation)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			switch c.kind.(type) {
			case *sandbox.SecurityError:
				wantErrorOf[*sandbox.SecurityError](t, err)
			case *sandbox.UserError:
				wantErrorOf[*sandbox.UserError](t, err)
			case *UnavailableError:
				wantErrorOf[*UnavailableError](t, err)
			}
			var said bytes.Buffer
			j.reportDownloads(joblog.New(&said))
			if !strings.Contains(said.String(), c.log) || c.log == "" && said.Len() > 0 {
				t.Errorf("the log says %q, want %q", said.String(), c.log)
			}
		})
	}
}

func wantErrorOf[E error](t *testing.T, err error) {
	t.Helper()
	if _, ok := errors.AsType[E](err); !ok {
		t.Errorf("a %T, want a %T: %v", err, *new(E), err)
	}
}
