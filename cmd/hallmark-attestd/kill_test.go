package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/sandbox/record"
)

var kills = flag.Int("kills", 12, "how often TestKilledUnderLoad kills the authority")

// killHosts is how many runner hosts work meanwhile.
const killHosts = 8

// TestKilledUnderLoad kills the authority at random moments while hosts open,
// append and close. Afterwards nothing that was acknowledged is lost, each
// closed attempt has one statement, signed once, and nothing is left half-done.
func TestKilledUnderLoad(t *testing.T) {
	w := newKillWorld(t)
	daemon := w.start()
	ctx, stop := context.WithCancel(t.Context())
	var hosts sync.WaitGroup
	for n := range killHosts {
		hosts.Go(func() { w.host(ctx, int64(1_000_000*(n+1))) })
	}
	ended := make(chan struct{})
	go func() { defer close(ended); hosts.Wait() }()
	began := time.Now()
	for range *kills {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		w.kill(daemon)
		daemon = w.start()
	}
	took := time.Since(began)
	for w.closed() < killHosts { // a slow machine may have closed none so far
		select {
		case <-ended:
			t.Fatalf("the hosts have given up, %d attempts are closed", w.closed())
		case err := <-daemon.ended:
			t.Fatalf("the authority ends (%v) while hosts work", err)
		case <-time.After(time.Millisecond):
		}
	}
	stop()
	select {
	case <-ended:
	case err := <-daemon.ended:
		t.Fatalf("the authority ends (%v) while hosts finish", err)
	}
	w.settled()
	signed := w.logSize()
	w.stop(daemon)
	w.check(signed)
	t.Logf("%d kills in %.1f s: %d attempts, %d acknowledged lines, %d closed, %d asked again after a kill",
		*kills, took.Seconds(), len(w.seen), w.lines(), w.closed(), w.retried)
}

// killWorld is an authority that is killed, and what hosts know of it.
type killWorld struct {
	t      *testing.T
	dir    string
	http   string
	gitlab string

	mu      sync.Mutex
	seen    map[string]*seen // by attempt
	retried int
}

// seen is what the authority acknowledged about one attempt.
type seen struct {
	lines   [][]byte
	bundles []string // that it was closed with, by sha256
}

func newKillWorld(t *testing.T) *killWorld {
	t.Helper()
	dir, err := os.MkdirTemp("", "attestd-kill-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	gitlab := httptest.NewServer(http.HandlerFunc(anyJob))
	t.Cleanup(gitlab.Close)
	w := &killWorld{t: t, dir: dir, gitlab: gitlab.URL, seen: map[string]*seen{}}
	conf := fmt.Sprintf(`gitlab_url = %q
builder_uri = "https://ci.example.com/hallmark"
socket = %q
hosts = [%q]
http = "127.0.0.1:0"
state_dir = %q
[limits]
opens_per_minute = 1048576
open_attempts = 1048576
`, gitlab.URL, w.path("sock"), strconv.Itoa(os.Getuid()), w.path("state"))
	w.must(os.Mkdir(w.path("state"), 0o700))
	w.must(os.WriteFile(w.path("attestd.toml"), []byte(conf), 0o644))
	if os.Geteuid() == 0 {
		for _, name := range []string{dir, w.path("state")} {
			w.must(os.Chown(name, authorityUser, authorityUser))
		}
	}
	return w
}

func (w *killWorld) path(name string) string { return filepath.Join(w.dir, name) }

func (w *killWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// anyJob is a GitLab in which every job runs whose token is its number.
func anyJob(rw http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.Header.Get("JOB-TOKEN"), 10, 64)
	if r.URL.Path != "/api/v4/job" || err != nil {
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	j := attesttest.Opened().Job
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(map[string]any{
		"id": id, "status": "running", "name": j.Name, "stage": j.Stage, "ref": j.Ref, "tag": false,
		"commit": map[string]any{"id": j.SHA}, "user": map[string]any{"id": j.UserID},
		"pipeline": map[string]any{"id": j.PipelineID, "project_id": j.ProjectID, "sha": j.SHA},
		"web_url":  fmt.Sprintf("https://gitlab.example.com/group/project/-/jobs/%d", id), "runner": map[string]any{"id": 7},
	})
}

// A victim is the authority's process. Its end is noticed whenever it comes.
type victim struct {
	*os.Process
	ended chan error
}

// start returns once the authority serves.
func (w *killWorld) start() victim {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe", "serve", "-config", w.path("attestd.toml"))
	cmd.Args[0] = "hallmark-attestd"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: authorityUser, Gid: authorityUser}}
	}
	log, err := os.Create(w.path("log"))
	w.must(err)
	defer log.Close()
	cmd.Stderr = log
	w.must(cmd.Start())
	d := victim{cmd.Process, make(chan error, 1)}
	go func() { d.ended <- cmd.Wait() }()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		text, err := os.ReadFile(w.path("log"))
		w.must(err)
		if _, rest, ok := strings.Cut(string(text), " http="); ok && strings.Contains(rest, "\n") {
			w.http = strings.Fields(rest)[0]
			return d
		}
		select {
		case err := <-d.ended:
			w.t.Fatalf("the authority ends (%v) when it should serve:\n%s", err, text)
		default:
		}
		if time.Now().After(deadline) {
			_ = d.Kill()
			w.t.Fatalf("the authority does not start:\n%s", text)
		}
	}
}

// kill fails if the authority has ended by itself.
func (w *killWorld) kill(d victim) {
	w.must(d.Kill())
	<-d.ended
}

func (w *killWorld) stop(d victim) {
	w.must(d.Signal(syscall.SIGTERM))
	w.must(<-d.ended)
}

// host takes one job after another through its life, until ctx ends. It
// finishes the job it has then: a call that is cancelled goes on in the
// authority, which may sign after all that was signed has been counted.
func (w *killWorld) host(ctx context.Context, job int64) {
	conn, err := client.DialSocket(w.path("sock"))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer conn.Close()
	for ; ctx.Err() == nil; job++ {
		if err := w.job(w.t.Context(), conn, job); err != nil && w.t.Context().Err() == nil {
			w.t.Errorf("job %d: %v", job, err)
			return
		}
	}
}

// job does what a host does, and asks again until it is answered.
func (w *killWorld) job(ctx context.Context, conn *grpc.ClientConn, id int64) error {
	stub := authoritypb.NewAuthorityClient(conn)
	o := attesttest.Opened()
	o.Job.ID = id
	token := strconv.FormatInt(id, 10)
	res, err := again(ctx, w, conn, func(ctx context.Context) (*authoritypb.OpenResponse, error) {
		return stub.Open(ctx, &authoritypb.OpenRequest{
			Session: o.Session, Profile: o.Profile, JobToken: token,
			Job: &authoritypb.JobFacts{
				Id: id, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
				PipelineId: o.Job.PipelineID, UserId: o.Job.UserID, Ref: o.Job.Ref, Sha: o.Job.SHA,
			},
		})
	})
	if err != nil {
		return err
	}
	o.Attempt, o.Nonce, o.InvocationID = res.GetAttempt(), res.GetNonce(), res.GetInvocationId()
	lines, err := attesttest.Lines(time.Now(), attesttest.JobOf(o))
	if err != nil {
		return err
	}
	head := ""
	for from := 0; from < len(lines); {
		to := min(len(lines), from+1+rand.IntN(6))
		sum, err := again(ctx, w, conn, func(ctx context.Context) (*authoritypb.AppendResponse, error) {
			return stub.Append(ctx, &authoritypb.AppendRequest{Attempt: o.Attempt, Lines: lines[from:to]})
		})
		if err != nil {
			return err
		}
		if sum.GetEntries() != int64(to) {
			return fmt.Errorf("%d entries are held of %d", sum.GetEntries(), to)
		}
		w.saw(o.Attempt, func(s *seen) { s.lines = lines[:to] })
		from, head = to, sum.GetHead()
	}
	out, err := again(ctx, w, conn, func(ctx context.Context) (*authoritypb.CloseResponse, error) {
		return stub.Close(ctx, &authoritypb.CloseRequest{Attempt: o.Attempt, Head: head, JobToken: token})
	})
	if err != nil {
		return err
	}
	w.saw(o.Attempt, func(s *seen) {
		for _, at := range out.GetAttestations() {
			s.bundles = append(s.bundles, at.GetSha256())
		}
	})
	return nil
}

// again repeats a call that found nobody.
func again[T any](ctx context.Context, w *killWorld, conn *grpc.ClientConn, call func(context.Context) (T, error)) (T, error) {
	for {
		out, err := call(ctx)
		if err == nil || !client.IsTemporary(err) || ctx.Err() != nil {
			return out, err
		}
		w.mu.Lock()
		w.retried++
		w.mu.Unlock()
		conn.ResetConnectBackoff()
		time.Sleep(5 * time.Millisecond)
	}
}

func (w *killWorld) saw(attempt string, change func(*seen)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[attempt] == nil {
		w.seen[attempt] = &seen{}
	}
	change(w.seen[attempt])
}

func (w *killWorld) lines() (n int) {
	for _, s := range w.seen {
		n += len(s.lines)
	}
	return n
}

func (w *killWorld) closed() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		n += min(1, len(s.bundles))
	}
	return n
}

func (w *killWorld) get(path string) string {
	w.t.Helper()
	res, err := http.Get((&url.URL{Scheme: "http", Host: w.http, Path: path}).String())
	w.must(err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	w.must(err)
	return string(text)
}

// settled waits until the authority has gone on with all that was signed.
func (w *killWorld) settled() {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		ready := w.get("/readyz")
		if strings.Contains(ready, "signed, without log proof: 0\n") {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("signed attempts are left behind: %s", ready)
		}
	}
}

// logSize is how many signatures the log has.
func (w *killWorld) logSize() int {
	w.t.Helper()
	lines := strings.Split(w.get("/log/checkpoint"), "\n")
	if len(lines) < 3 {
		w.t.Fatalf("checkpoint %q", lines)
	}
	n, err := strconv.Atoi(lines[1])
	w.must(err)
	return n
}

// check compares the state directory with what the hosts were told.
func (w *killWorld) check(signed int) {
	w.t.Helper()
	if os.Geteuid() == 0 {
		w.must(filepath.WalkDir(w.path("state"), func(name string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(name, 0, 0))
		}))
	}
	ctx := w.t.Context()
	s, err := embedded.Open(ctx, w.path("state/store"))
	w.must(err)
	defer s.Close()
	w.must(s.Check(ctx))
	if left, err := s.Signed(ctx, 10); err != nil || len(left) > 0 {
		w.t.Errorf("%d attempts are left signed, %v", len(left), err)
	}
	bundles := 0
	for id, have := range w.seen {
		at, err := s.Attempt(ctx, id)
		w.must(err)
		data, err := s.Record(ctx, id)
		w.must(err)
		if want := append(bytes.Join(have.lines, []byte("\n")), '\n'); !bytes.HasPrefix(data, want) {
			w.t.Errorf("attempt %s: %d acknowledged lines are not all there", id, len(have.lines))
		}
		if at.State == store.StateClosed {
			bundles += w.checkClosed(ctx, s, id, data, have.bundles)
		} else if len(have.bundles) > 0 {
			w.t.Errorf("attempt %s: attested, and then %s", id, at.State)
		}
	}
	if signed != bundles {
		w.t.Errorf("%d signatures in the log, %d bundles", signed, bundles)
	}
}

// checkClosed holds that the one bundle is what the record says and the host
// was told.
func (w *killWorld) checkClosed(ctx context.Context, s store.Store, id string, data []byte, told []string) int {
	w.t.Helper()
	at, err := s.Attempt(ctx, id)
	w.must(err)
	found, err := s.ByJob(ctx, at.Job.ID, 10)
	w.must(err)
	if len(found) != 1 || len(told) > 0 && (len(told) != 1 || told[0] != found[0].SHA256) {
		w.t.Errorf("attempt %s: bundles %v, the host was told %v", id, found, told)
		return len(found)
	}
	entries, _, err := record.Read(bytes.NewReader(data))
	w.must(err)
	statements, err := attest.Statements(entries, attest.Facts{
		BuilderID: at.BuilderID, BuilderVersion: map[string]string{"hallmark-attestd": version}, GitLabURL: w.gitlab,
	})
	w.must(err)
	bundle, err := s.Content(ctx, found[0].SHA256)
	w.must(err)
	payload := base64.StdEncoding.EncodeToString(statements[0].JSON)
	if len(statements) != 1 || !bytes.Contains(bundle, []byte(payload)) || !bytes.Contains(bundle, []byte("inclusionProof")) {
		w.t.Errorf("attempt %s: the bundle is not the record's statement with the log's proof", id)
	}
	return 1
}
