// Package storetest proves that a store keeps its promises.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/store"
)

// Run runs every test on stores that open makes. open is called with the same
// directory again to reopen a store, after the last one was closed.
func Run(t *testing.T, open func(t *testing.T, dir string) (store.Store, func())) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"attempts":            attempts,
		"decided once":        decidedOnce,
		"one of many":         oneOfMany,
		"one open of a job":   oneOpen,
		"one attested":        oneAttested,
		"not a decision":      notDecisions,
		"records":             records,
		"read records":        readRecords,
		"bundles":             bundles,
		"filtered":            filtered,
		"parts":               parts,
		"nothing":             nothing,
		"signed":              signed,
		"not what was signed": notSigned,
		"waiting":             waiting,
		"one signs":           oneSigns,
		"listed":              listed,
		"one appends":         oneAppends,
		"locks":               locks,
		"hosts":               hosts,
		"odd text":            oddText,
	} {
		t.Run(name, func(t *testing.T) {
			s, done := open(t, t.TempDir())
			defer done()
			test(t, s)
			if err := s.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("reopened", func(t *testing.T) { reopened(t, open) })
}

// Attempt is a sample.
func Attempt(n int, job int64) store.Attempt {
	id := fmt.Sprintf("%032x", n)
	return store.Attempt{
		ID: id, Session: id, Host: "runner-1", Profile: "hermetic", Nonce: attesttest.SHA256(id),
		InvocationID: "https://ci.example.com/hallmark/attempts/" + id, BuilderID: "https://ci.example.com/hallmark/hermetic",
		Job: store.Job{
			ID: job, Name: "compile", Stage: "build", ProjectID: 77, Project: "group/project", Host: "gitlab.example.com",
			PipelineID: 9001, UserID: 3, Ref: "main", Tag: true, SHA: attesttest.Commit, RunnerID: 7, Manager: "s_0123456789ab",
			IDToken: &store.IDToken{Issuer: "https://gitlab.example.com", ID: "0c7c", Issued: attesttest.Start()},
		},
		Opened: attesttest.Start().Add(time.Duration(n) * time.Second), State: store.StateOpen,
	}
}

// Decision is a sample with the given number of bundles.
func Decision(n, parts int) store.Decision {
	d := store.Decision{State: store.StateClosed, Project: "group/project", Ended: attesttest.Start().Add(time.Duration(n) * time.Hour)}
	for part := range parts {
		d.Bundles = append(d.Bundles, store.Bundle{
			JSON: fmt.Appendf(nil, `{"n":%d,"part":%d}`, n, part),
			Subjects: []attest.Subject{
				{Name: "a", SHA256: attesttest.SHA256(fmt.Sprint(n, part, "a"))},
				{Name: "b", SHA256: attesttest.SHA256("same in all")},
			},
		})
	}
	if parts == 0 {
		d.Reason, d.Project = "no outputs", ""
	}
	return d
}

// bundleOf is the sha256 of one of Decision's bundles.
func bundleOf(n, part int) string {
	return attesttest.SHA256(string(Decision(n, part+1).Bundles[part].JSON))
}

// Drafts are what Decision's bundles were before they were entered in a log.
func Drafts(n, parts int) []store.Bundle {
	d := Decision(n, parts)
	for i := range d.Bundles {
		d.Bundles[i].JSON = append([]byte("draft "), d.Bundles[i].JSON...)
	}
	return d.Bundles
}

// Bundles are what an attempt was closed with, whole.
func Bundles(ctx context.Context, s store.Store, attempt string) ([]store.Bundle, error) {
	parts, err := s.Parts(ctx, attempt, math.MaxInt32)
	if err != nil {
		return nil, err
	}
	var out []store.Bundle
	for i, p := range parts {
		content, err := s.Content(ctx, p.SHA256)
		if err != nil {
			return nil, err
		}
		if p.Number != i+1 || p.Count != int64(len(p.Subjects)) {
			return nil, fmt.Errorf("part %d is number %d, and has %d of %d subjects", i+1, p.Number, len(p.Subjects), p.Count)
		}
		out = append(out, store.Bundle{JSON: content, Subjects: p.Subjects})
	}
	return out, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func attempts(t *testing.T, s store.Store) {
	ctx := t.Context()
	first, second, other := Attempt(1, 10), Attempt(2, 10), Attempt(3, 11)
	must(t, s.Begin(ctx, first))
	must(t, s.Begin(ctx, other))
	have, err := s.Attempt(ctx, first.ID)
	must(t, err)
	if diff := cmp.Diff(first, have); diff != "" {
		t.Error(diff)
	}
	must(t, s.Begin(ctx, second, first.ID))
	all, err := s.AttemptsOfJob(ctx, 10)
	must(t, err)
	if len(all) != 2 || all[0].ID != first.ID || all[0].State != store.StateSuperseded || !strings.Contains(all[0].Reason, second.ID) || all[1].State != store.StateOpen {
		t.Errorf("%+v", all)
	}
	if err := s.Begin(ctx, Attempt(2, 12)); err == nil {
		t.Error("two attempts of one name")
	}
}

func decidedOnce(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	must(t, s.Decide(ctx, Attempt(1, 10).ID, Decision(1, 1)))
	for _, d := range []store.Decision{Decision(1, 1), Decision(2, 1), Decision(1, 0), {State: store.StateRefused, Reason: "x", Ended: time.Now()}} {
		if err := s.Decide(ctx, Attempt(1, 10).ID, d); !errors.Is(err, store.ErrDecided) {
			t.Errorf("decided again: %v", err)
		}
	}
	bs, err := Bundles(ctx, s, Attempt(1, 10).ID)
	must(t, err)
	if diff := cmp.Diff(Decision(1, 1).Bundles, bs); diff != "" {
		t.Error(diff)
	}
	must(t, s.Begin(ctx, Attempt(2, 20)))
	must(t, s.Decide(ctx, Attempt(2, 20).ID, store.Decision{State: store.StateRefused, Reason: "security: x", Ended: attesttest.Start()}))
	if err := s.Decide(ctx, Attempt(2, 20).ID, Decision(2, 1)); !errors.Is(err, store.ErrDecided) {
		t.Errorf("a refused attempt was attested: %v", err)
	}
	if err := s.Begin(ctx, Attempt(3, 20), Attempt(2, 20).ID); !errors.Is(err, store.ErrDecided) {
		t.Errorf("a refused attempt was superseded: %v", err)
	}
}

func oneOfMany(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	var (
		wg   sync.WaitGroup
		errs [8]error
	)
	for i := range errs {
		wg.Go(func() { errs[i] = s.Decide(ctx, Attempt(1, 10).ID, Decision(i, 2)) })
	}
	wg.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, store.ErrDecided):
			t.Errorf("decision %d: %v", i, err)
		}
	}
	bs, err := Bundles(ctx, s, Attempt(1, 10).ID)
	must(t, err)
	if diff := cmp.Diff(Decision(won, 2).Bundles, bs); diff != "" {
		t.Error(diff)
	}
}

func oneOpen(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	if err := s.Begin(ctx, Attempt(2, 10)); err == nil {
		t.Error("two open attempts of one job")
	}
	if all, err := s.AttemptsOfJob(ctx, 10); err != nil || len(all) != 1 {
		t.Errorf("%d attempts, %v", len(all), err)
	}
}

func oneAttested(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	must(t, s.Decide(ctx, Attempt(1, 10).ID, Decision(1, 0)))
	must(t, s.Begin(ctx, Attempt(2, 10)))
	must(t, s.Decide(ctx, Attempt(2, 10).ID, Decision(2, 1)))
	must(t, s.Begin(ctx, Attempt(3, 10))) // the authority would not
	if err := s.Sign(ctx, Attempt(3, 10).ID, Drafts(3, 1), "group/project", true); err == nil {
		t.Error("a second attempt was signed")
	}
	if err := s.Decide(ctx, Attempt(3, 10).ID, Decision(3, 1)); err == nil {
		t.Error("a second attempt was attested")
	}
	must(t, s.Sweep(ctx, time.Now().Add(time.Hour)))
	must(t, s.Decide(ctx, Attempt(3, 10).ID, Decision(3, 0)))
}

func notDecisions(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	refused := Decision(1, 1)
	refused.State = store.StateRefused
	for name, d := range map[string]store.Decision{
		"open":                 {State: store.StateOpen, Reason: "x"},
		"without reason":       {State: store.StateClosed},
		"refused with bundles": refused,
		"of no project":        {State: store.StateClosed, Bundles: refused.Bundles},
		"of a project":         {State: store.StateClosed, Reason: "x", Project: "group/project"},
	} {
		if err := s.Decide(ctx, Attempt(1, 10).ID, d); err == nil || errors.Is(err, store.ErrDecided) {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, err := s.Attempt(ctx, Attempt(1, 10).ID)
	must(t, err)
	if a.State != store.StateOpen {
		t.Errorf("state %s", a.State)
	}
}

func records(t *testing.T, s store.Store) {
	id := Attempt(1, 10).ID
	must(t, s.Begin(t.Context(), Attempt(1, 10)))
	data, err := s.Record(t.Context(), id)
	if err != nil || len(data) != 0 {
		t.Errorf("%q, %v", data, err)
	}
	must(t, s.AppendRecord(t.Context(), id, 0, [][]byte{[]byte("one"), []byte("two")}))
	must(t, s.AppendRecord(t.Context(), id, 8, [][]byte{[]byte("three")}))
	data, err = s.Record(t.Context(), id)
	must(t, err)
	if string(data) != "one\ntwo\nthree\n" {
		t.Errorf("%q", data)
	}
	for _, at := range []int64{0, 4, 7, 13, 15, 100} {
		if err := s.AppendRecord(t.Context(), id, at, [][]byte{[]byte("x")}); err == nil {
			t.Errorf("appended at %d", at)
		}
	}
	if again, err := s.Record(t.Context(), id); err != nil || string(again) != string(data) {
		t.Errorf("%q, %v", again, err)
	}
	for _, bad := range []string{"", ".", "..", "../index", "a/b"} {
		if err := s.AppendRecord(t.Context(), bad, 0, [][]byte{[]byte("x")}); err == nil {
			t.Errorf("record %q", bad)
		}
	}
}

// readRecords reads a record of many appends here and there.
func readRecords(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	for _, id := range []string{Attempt(1, 10).ID, Attempt(9, 9).ID, "", "../index"} {
		if _, err := s.OpenRecord(ctx, id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("opened %q: %v", id, err)
		}
		if size, err := s.RecordSize(ctx, id); id != "" && id[0] != '.' && (size != 0 || err != nil) {
			t.Errorf("size of %q: %d, %v", id, size, err)
		}
	}
	want := ""
	for n := range 20 {
		line := strings.Repeat(fmt.Sprint(n), 1+n*100)
		must(t, s.AppendRecord(ctx, Attempt(1, 10).ID, int64(len(want)), [][]byte{[]byte(line)}))
		must(t, s.AppendRecord(ctx, Attempt(1, 10).ID, int64(len(want)+len(line)+1), nil)) // nothing, which is fine
		want += line + "\n"
	}
	r, err := s.OpenRecord(ctx, Attempt(1, 10).ID)
	must(t, err)
	defer r.Close()
	must(t, iotest.TestReader(r, []byte(want)))
}

func bundles(t *testing.T, s store.Store) {
	ctx := t.Context()
	for n := 1; n <= 3; n++ {
		must(t, s.Begin(ctx, Attempt(n, int64(n))))
		must(t, s.Decide(ctx, Attempt(n, 0).ID, Decision(n, n)))
	}
	must(t, s.Begin(ctx, Attempt(4, 4)))
	must(t, s.Decide(ctx, Attempt(4, 0).ID, Decision(4, 0)))
	find := func(found []store.Found, err error) string {
		must(t, err)
		var out []string
		for _, f := range found {
			content, err := s.Content(ctx, f.SHA256)
			must(t, err)
			if has, err := s.HasBundle(ctx, f.SHA256); !has || err != nil {
				t.Errorf("bundle %s: %t, %v", f.SHA256, has, err)
			}
			if attesttest.SHA256(string(content)) != f.SHA256 || f.Project != "group/project" || f.Closed.IsZero() {
				t.Errorf("%+v", f)
			}
			out = append(out, fmt.Sprintf("%d.%d", f.JobID, f.Part))
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ have, want string }{
		{find(s.BySubject(ctx, attesttest.SHA256(fmt.Sprint(2, 1, "a")), store.Filter{}, 10)), "2.2"},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{}, 10)), "3.1 3.2 3.3 2.1 2.2 1.1"},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{}, 2)), "3.1 3.2"},
		{find(s.BySubject(ctx, attesttest.SHA256("none"), store.Filter{}, 10)), ""},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{Job: 2}, 10)), "2.1 2.2"},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{Job: 4}, 10)), ""},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{Project: "group/project", Job: 1}, 10)), "1.1"},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{Project: "group"}, 10)), ""},
		{find(s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{Bundle: bundleOf(2, 1)}, 10)), "2.2"},
		{find(s.BySubject(ctx, attesttest.SHA256("none"), store.Filter{Bundle: bundleOf(2, 1)}, 10)), ""},
		{find(s.ByJob(ctx, 2, 10)), "2.1 2.2"},
		{find(s.ByJob(ctx, 4, 10)), ""},
		{find(s.ByProject(ctx, "group/project", 10)), "3.1 3.2 3.3 2.1 2.2 1.1"},
		{find(s.ByProject(ctx, "group", 10)), ""},
		{find(s.ByProject(ctx, "", 10)), ""},
	} {
		if c.have != c.want {
			t.Errorf("found %q, want %q", c.have, c.want)
		}
	}
}

// filtered has more bundles of one output than an answer holds, all newer than the
// one that is asked for.
func filtered(t *testing.T, s store.Store) {
	ctx := t.Context()
	attested := func(n int, profile string, protected *bool) {
		a := Attempt(n, int64(n))
		a.Profile = profile
		must(t, s.Begin(ctx, a))
		if protected != nil {
			must(t, s.Sign(ctx, a.ID, Drafts(n, 1), "group/project", *protected))
		}
		must(t, s.Decide(ctx, a.ID, Decision(n, 1)))
	}
	yes, no := true, false
	attested(1, "hermetic", nil) // as an older program kept it
	attested(2, "hermetic", &yes)
	attested(3, "hermetic", &no)
	for n := 10; n < 30; n++ {
		attested(n, "hermetic", &no)
		attested(n+20, "restricted", &yes)
	}
	find := func(only store.Filter, limit int) (jobs []int64) {
		found, err := s.BySubject(ctx, attesttest.SHA256("same in all"), only, limit)
		must(t, err)
		for _, f := range found {
			jobs = append(jobs, f.JobID)
		}
		return jobs
	}
	for name, c := range map[string]struct {
		only  store.Filter
		limit int
		want  []int64
	}{
		"all":                {store.Filter{}, 3, []int64{49, 48, 47}},
		"protected":          {store.Filter{Protected: &yes, Profile: "hermetic"}, 16, []int64{2, 1}},
		"unprotected":        {store.Filter{Protected: &no, Profile: "hermetic"}, 3, []int64{29, 28, 27}},
		"unprotected, last":  {store.Filter{Protected: &no, Profile: "hermetic"}, 100, []int64{29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 3, 1}},
		"another profile":    {store.Filter{Protected: &no, Profile: "restricted"}, 16, nil},
		"profile alone":      {store.Filter{Profile: "restricted"}, 2, []int64{49, 48}},
		"all of it":          {store.Filter{Project: "group/project", Job: 2, Bundle: bundleOf(2, 0), Profile: "hermetic", Protected: &yes}, 16, []int64{2}},
		"all but protection": {store.Filter{Project: "group/project", Job: 2, Bundle: bundleOf(2, 0), Profile: "hermetic", Protected: &no}, 16, nil},
		"all but profile":    {store.Filter{Project: "group/project", Job: 2, Bundle: bundleOf(2, 0), Profile: "x", Protected: &yes}, 16, nil},
		"all but job":        {store.Filter{Project: "group/project", Job: 3, Bundle: bundleOf(2, 0), Profile: "hermetic", Protected: &yes}, 16, nil},
		"all but project":    {store.Filter{Project: "group", Job: 2, Bundle: bundleOf(2, 0), Profile: "hermetic", Protected: &yes}, 16, nil},
	} {
		if diff := cmp.Diff(c.want, find(c.only, c.limit)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// parts lists bundles with some of their subjects.
func parts(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 1)))
	d := Decision(1, 2)
	must(t, s.Decide(ctx, Attempt(1, 1).ID, d))
	for limit, subjects := range map[int]int{0: 0, 1: 1, 2: 2, 3: 2} {
		have, err := s.Parts(ctx, Attempt(1, 1).ID, limit)
		must(t, err)
		var want []store.Part
		for i, b := range d.Bundles {
			p := store.Part{Number: i + 1, SHA256: bundleOf(1, i), Count: int64(len(b.Subjects))}
			p.Subjects = append(p.Subjects, b.Subjects[:subjects]...)
			want = append(want, p)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%d subjects: %s", limit, diff)
		}
	}
}

func nothing(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Attempt(ctx, "x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := s.Decide(ctx, "x", Decision(1, 1)); !errors.Is(err, store.ErrDecided) {
		t.Errorf("%v", err)
	}
	for _, digest := range []string{"", "x", strings.Repeat("0", 64), "../index.db", strings.Repeat("/", 64)} {
		if _, err := s.Content(ctx, digest); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: %v", digest, err)
		}
		if has, err := s.HasBundle(ctx, digest); has || err != nil {
			t.Errorf("%q: %t, %v", digest, has, err)
		}
	}
	if bs, err := Bundles(ctx, s, "x"); err != nil || len(bs) != 0 {
		t.Errorf("%d bundles, %v", len(bs), err)
	}
}

func reopened(t *testing.T, open func(*testing.T, string) (store.Store, func())) {
	ctx, dir := t.Context(), t.TempDir()
	s, done := open(t, dir)
	must(t, s.Begin(ctx, Attempt(1, 1)))
	must(t, s.Begin(ctx, Attempt(2, 2)))
	must(t, s.AppendRecord(t.Context(), Attempt(1, 1).ID, 0, [][]byte{[]byte("line")}))
	must(t, s.Decide(ctx, Attempt(2, 2).ID, Decision(2, 2)))
	must(t, s.Begin(ctx, Attempt(3, 3)))
	must(t, s.Sign(ctx, Attempt(3, 3).ID, Drafts(3, 2), "group/project", true))
	must(t, s.Invite(ctx, Invitation("a", "runner-1")))
	done()
	s, done = open(t, dir)
	defer done()
	must(t, s.Check(ctx))
	a, err := s.Attempt(ctx, Attempt(1, 1).ID)
	must(t, err)
	if diff := cmp.Diff(Attempt(1, 1), a); diff != "" {
		t.Error(diff)
	}
	bs, err := Bundles(ctx, s, Attempt(2, 2).ID)
	must(t, err)
	if diff := cmp.Diff(Decision(2, 2).Bundles, bs); diff != "" {
		t.Error(diff)
	}
	must(t, s.AppendRecord(t.Context(), a.ID, 5, [][]byte{[]byte("more")}))
	drafts, err := s.Drafts(ctx, Attempt(3, 3).ID)
	must(t, err)
	if diff := cmp.Diff(Drafts(3, 2), drafts); diff != "" {
		t.Error(diff)
	}
	must(t, s.Decide(ctx, Attempt(3, 3).ID, Decision(3, 2)))
	_, err = s.Enrol(ctx, attesttest.SHA256("a"), attesttest.SHA256("key"), attesttest.Start(), attesttest.Start().Add(time.Hour))
	must(t, err)
	must(t, s.Check(ctx))
}
