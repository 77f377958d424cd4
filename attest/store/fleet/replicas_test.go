package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/proto"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
)

// yes is a GitLab that confirms everything.
type yes struct{}

func (yes) Check(context.Context, string, gitlab.Facts) (gitlab.Confirmed, error) {
	return gitlab.Confirmed{Project: "group/project", Host: "gitlab.example.com"}, nil
}
func (yes) Closing(context.Context, string, gitlab.Facts, string) error { return nil }
func (yes) Ended(context.Context, gitlab.Facts, string) error           { return nil }

// notary signs and logs for all replicas, and counts. No two of its signatures
// are alike.
type notary struct {
	mu      sync.Mutex
	signed  int
	entered map[string]bool
}

func newNotary() *notary { return &notary{entered: map[string]bool{}} }

func (n *notary) Sign(_ context.Context, st attest.Statement) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.signed++
	return fmt.Appendf(nil, "signature %d of %s", n.signed, st.JSON), nil
}

func (n *notary) Trusted() (*trustpb.TrustedRoot, error) { return nil, errors.New("nobody asks") }

// ledger is the notary's log.
type ledger struct{ *notary }

func (n ledger) Enter(_ context.Context, draft []byte) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entered[attesttest.SHA256(string(draft))] = true
	return append([]byte("logged "), draft...), nil
}

func (n ledger) Trusted() []*trustpb.TransparencyLogInstance { return nil }

// A replica is an authority on a connection of its own.
type replica struct {
	*authority.Authority
	store *fleet.Store
}

func newReplica(t testing.TB, o fleet.Options, n *notary) replica {
	t.Helper()
	s := open(t, o)
	a, err := authority.New(authority.Config{
		Store: s, Signer: n, GitLab: yes{}, GitLabURL: "https://gitlab.internal", BuilderURI: "https://ci.example.com/hallmark",
		Version: "0.1.0", Secret: make([]byte, 32), Transparency: ledger{n}, Limits: authority.Limits{OpensPerMinute: 1 << 20}, Now: attesttest.Start, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return replica{a, s}
}

// A host's part of a job: what it sends, and what was acknowledged.
type host struct {
	job    int64
	opened *authoritypb.OpenResponse
	lines  [][]byte
	head   string
	closed *authoritypb.CloseResponse
}

func (h *host) open(ctx context.Context, r replica) error {
	o := attesttest.Opened()
	res, err := r.Open(ctx, &authoritypb.OpenRequest{
		Session: o.Session, Profile: o.Profile, JobToken: "token",
		Job: &authoritypb.JobFacts{
			Id: h.job, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
			PipelineId: o.Job.PipelineID, UserId: o.Job.UserID, Ref: o.Job.Ref, Sha: o.Job.SHA,
		},
	})
	if err != nil {
		return err
	}
	h.opened = res
	o.Job.ID, o.Attempt, o.Nonce, o.InvocationID = h.job, res.GetAttempt(), res.GetNonce(), res.GetInvocationId()
	h.lines, err = attesttest.Lines(attesttest.Start(), attesttest.JobOf(o))
	return err
}

func (h *host) append(ctx context.Context, r replica, from, to int) error {
	res, err := r.Append(ctx, &authoritypb.AppendRequest{Attempt: h.opened.GetAttempt(), Lines: h.lines[from:to]})
	if err == nil {
		h.head = res.GetHead()
	}
	return err
}

func (h *host) close(ctx context.Context, r replica) (*authoritypb.CloseResponse, error) {
	return r.Close(ctx, &authoritypb.CloseRequest{Attempt: h.opened.GetAttempt(), Head: h.head})
}

// live goes through the job from where it is. What was acknowledged is not
// asked for again.
func (h *host) live(ctx context.Context, r replica) error {
	if h.opened == nil {
		if err := h.open(ctx, r); err != nil {
			return fmt.Errorf("open: %w", err)
		}
	}
	if h.head == "" {
		half := len(h.lines) / 2
		for _, part := range [][2]int{{0, half}, {half, len(h.lines)}} {
			if err := h.append(ctx, r, part[0], part[1]); err != nil {
				h.head = ""
				return fmt.Errorf("append: %w", err)
			}
		}
	}
	res, err := h.close(ctx, r)
	if err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if h.closed == nil {
		h.closed = res
	}
	if !proto.Equal(h.closed, res) {
		return errors.New("two answers")
	}
	return nil
}

// TestTwoReplicasCloseOneAttempt has a host whose calls go to one replica and
// the other, and both asked at once to close.
func TestTwoReplicasCloseOneAttempt(t *testing.T) {
	o, n := running.Fresh(t), newNotary()
	replicas := []replica{newReplica(t, o, n), newReplica(t, o, n)}
	for job := int64(1); job <= 5; job++ {
		h := &host{job: job}
		if err := h.open(t.Context(), replicas[0]); err != nil {
			t.Fatal(err)
		}
		for i := range h.lines { // each replica must see what the other took
			if err := h.append(t.Context(), replicas[i%2], i, i+1); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		answers := make([]*authoritypb.CloseResponse, 8)
		for i := range answers {
			wg.Go(func() {
				var err error
				if answers[i], err = h.close(t.Context(), replicas[i%2]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, a := range answers {
			if !proto.Equal(answers[0], a) || len(a.GetAttestations()) != 1 {
				t.Errorf("%d attestations, or another answer", len(a.GetAttestations()))
			}
		}
		if found, err := replicas[1].store.ByJob(t.Context(), job, 10); err != nil || len(found) != 1 {
			t.Errorf("job %d has %d bundles, %v", job, len(found), err)
		}
	}
	if n.signed != 5 || len(n.entered) != 5 {
		t.Errorf("%d statements of 5 attempts were signed, %d logged", n.signed, len(n.entered))
	}
	check(t, replicas[0].store)
}

func check(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestReplicaCutAtEachStep cuts the connections of a replica at each message
// that it sends, before it arrives or after, and has another one finish the
// job. Then the first one is back.
func TestReplicaCutAtEachStep(t *testing.T) {
	o, n := running.Fresh(t), newNotary()
	proxy := running.NewProxy(t)
	behind := o
	behind.Database = proxy.URL(o.Bucket)
	first, second := newReplica(t, behind, n), newReplica(t, o, n)
	jobs := 0
	for message := 0; ; message++ {
		// What arrived and was not answered is the harder half.
		for _, deliver := range []bool{true, false}[:1+(message+1)%5/4] {
			jobs++
			h := &host{job: int64(jobs)}
			proxy.CutAfter(message, deliver)
			err := h.live(t.Context(), first)
			if !proxy.Heal() && err == nil {
				if message < 20 {
					t.Errorf("a job takes %d messages", message)
				}
				t.Logf("cut at %d places", jobs-1)
				oneStatementEach(t, second.store, n, jobs)
				return
			}
			for i, r := range []replica{second, first} {
				if err := h.live(t.Context(), r); err != nil {
					t.Fatalf("cut at message %d (%t), call %d: %v", message, deliver, i, err)
				}
			}
		}
	}
}

func oneStatementEach(t *testing.T, s *fleet.Store, n *notary, jobs int) {
	t.Helper()
	for job := range jobs {
		if found, err := s.ByJob(t.Context(), int64(job+1), 10); err != nil || len(found) != 1 {
			t.Errorf("job %d has %d bundles, %v", job+1, len(found), err)
		}
	}
	if len(n.entered) != jobs {
		t.Errorf("%d statements of %d jobs were logged", len(n.entered), jobs)
	}
	if err := s.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	check(t, s)
}

// TestLostLock has a replica decide under a lock that it lost meanwhile, and
// that another one has.
func TestLostLock(t *testing.T) {
	o := running.Fresh(t)
	proxy := running.NewProxy(t)
	behind := o
	behind.Database = proxy.URL(o.Bucket)
	first, second := open(t, behind), open(t, o)
	begin := func(n int, job int64) store.Attempt {
		a := storetest.Attempt(n, job)
		if err := second.Begin(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	decided := storetest.Decision(1, 1)
	for name, write := range map[string]func(ctx context.Context, a store.Attempt) error{
		"begin": func(ctx context.Context, a store.Attempt) error {
			return first.Begin(ctx, storetest.Attempt(9, a.Job.ID), a.ID)
		},
		"append": func(ctx context.Context, a store.Attempt) error {
			return first.AppendRecord(ctx, a.ID, 0, [][]byte{[]byte("x")})
		},
		"sign": func(ctx context.Context, a store.Attempt) error {
			return first.Sign(ctx, a.ID, storetest.Drafts(1, 1), "group/project", true)
		},
		"decide": func(ctx context.Context, a store.Attempt) error { return first.Decide(ctx, a.ID, decided) },
		"wait":   func(ctx context.Context, a store.Attempt) error { return first.Wait(ctx, a.ID, "for GitLab") },
		"read":   func(ctx context.Context, a store.Attempt) error { _, err := first.Attempt(ctx, a.ID); return err },
	} {
		t.Run(name, func(t *testing.T) {
			job := int64(len(name)*100) + int64(name[0])
			a := begin(int(job), job)
			locked, unlock, err := first.Lock(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			proxy.Cut()
			proxy.Heal()
			_, release, err := second.Lock(t.Context(), job) // it is free at once
			if err != nil {
				t.Fatal(err)
			}
			release()
			if err := write(locked, a); !contains(err, "lost") {
				t.Errorf("%v", err)
			}
			have, err := first.Attempt(t.Context(), a.ID) // the replica itself lives
			if err != nil || have.State != store.StateOpen || have.Reason != "" {
				t.Errorf("%+v, %v", have, err)
			}
			if size, err := second.RecordSize(t.Context(), a.ID); err != nil || size != 0 {
				t.Errorf("%d bytes, %v", size, err)
			}
		})
	}
	locked, unlock, err := first.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := first.AttemptsOfJob(locked, 1); !contains(err, "given back") {
		t.Errorf("used after it was given back: %v", err)
	}
}

// TestSleepingReplica has a replica take a lock and do nothing more.
func TestSleepingReplica(t *testing.T) {
	o := running.Fresh(t)
	first, second := open(t, o.WithHold(time.Second)), open(t, o)
	a := storetest.Attempt(1, 1)
	if err := second.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	locked, unlock, err := first.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	_, release, err := second.Lock(t.Context(), 1) // once the first one's time is up
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := first.Sign(locked, a.ID, storetest.Drafts(1, 1), "group/project", true); !contains(err, "lost") {
		t.Errorf("signed after it woke up: %v", err)
	}
}

// TestBrokenRecord takes a part out of a record.
func TestBrokenRecord(t *testing.T) {
	o := running.Fresh(t)
	s := open(t, o)
	storetest.Fill(t, s)
	id := storetest.Attempt(3, 0).ID
	run(t, o.Database, "INSERT INTO record_lines VALUES ('"+id+"', 20, 'three')")
	if _, err := s.Record(t.Context(), id); !contains(err, "broken at byte 8") {
		t.Errorf("%v", err)
	}
	if err := s.Check(t.Context()); !contains(err, id+": broken") {
		t.Errorf("%v", err)
	}
}

// TestManyReplicas has many open, append to, sign and close attempts of the
// same jobs at once, without locks: states alone keep them apart.
func TestManyReplicas(t *testing.T) {
	o := running.Fresh(t)
	var stores []*fleet.Store
	for range 4 {
		stores = append(stores, open(t, o))
	}
	each := func(f func(s *fleet.Store, i int) error) (won int) {
		var wg sync.WaitGroup
		errs := make([]error, 4*len(stores))
		for i := range errs {
			wg.Go(func() { errs[i] = f(stores[i%len(stores)], i) })
		}
		wg.Wait()
		won = -1
		for i, err := range errs {
			if err == nil && won >= 0 {
				t.Errorf("%d and %d succeeded", won, i)
			}
			if err == nil {
				won = i
			}
		}
		if won < 0 {
			t.Fatalf("none succeeded: %v", errors.Join(errs...))
		}
		return won
	}
	ctx := t.Context()
	for job := range int64(5) {
		n := func(i int) int { return int(1000*job) + i }
		first := each(func(s *fleet.Store, i int) error { return s.Begin(ctx, storetest.Attempt(n(i), job)) })
		old := storetest.Attempt(n(first), job).ID
		second := each(func(s *fleet.Store, i int) error { return s.Begin(ctx, storetest.Attempt(n(100+i), job), old) })
		id := storetest.Attempt(n(100+second), job).ID
		for at := range int64(3) {
			each(func(s *fleet.Store, i int) error {
				err := s.AppendRecord(ctx, id, at*8, [][]byte{fmt.Appendf(nil, "line %02d", i)})
				if err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
				}
				return err
			})
		}
		signed := each(func(s *fleet.Store, i int) error {
			return s.Sign(ctx, id, storetest.Drafts(n(i), 2), "group/project", true)
		})
		each(func(s *fleet.Store, i int) error { return s.Decide(ctx, id, storetest.Decision(n(signed), 2)) })
		data, err := stores[0].Record(ctx, id)
		if err != nil || len(data) != 24 {
			t.Errorf("record %q, %v", data, err)
		}
	}
	check(t, stores[0])
}
