package interop

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/sandbox/record"
)

const (
	builderURI = "https://ci.example.test/hallmark"
	builderID  = builderURI + "/hermetic"
	content    = "what the job made\n" // of the artifact
)

// An authority is the program as it is installed, with a GitLab that confirms
// every job.
type authority struct {
	socket, config, http string
	next                 int64 // job
	said                 transcript
	end                  func() error
}

// A transcript is what a program has said so far.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.Write(p)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.String()
}

// nobody is whom the authority runs as where the tests run as root.
const nobody = 65534

// startAuthority starts the program with what is to be added to its
// configuration, the files of which are in a directory of its own.
func startAuthority(t *testing.T, more string, files map[string][]byte) *authority {
	t.Helper()
	dir := authorityDir(t, files)
	gitlab := httptest.NewServer(http.HandlerFunc(confirm))
	t.Cleanup(gitlab.Close)
	a := &authority{socket: filepath.Join(dir, "attestd.sock"), config: filepath.Join(dir, "attestd.toml"), next: 4242}
	config := fmt.Sprintf("gitlab_url = %q\nbuilder_uri = %q\nsocket = %q\nhosts = [%q]\nhttp = \"127.0.0.1:0\"\nstate_dir = %q\n%s",
		gitlab.URL, builderURI, a.socket, strconv.Itoa(os.Getuid()), filepath.Join(dir, "state"), strings.ReplaceAll(more, "DIR", dir))
	if err := os.WriteFile(a.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	t.Cleanup(func() { a.stop(t) })
	return a
}

// program is a call of the program as the authority's user.
func (a *authority) program(t *testing.T, args ...string) *exec.Cmd {
	cmd := exec.Command(module(t, "bin/hallmark-attestd"), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

func (a *authority) start(t *testing.T) {
	t.Helper()
	cmd := a.program(t, "serve", "-config", a.config)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v\nhint: make build peers", err)
	}
	a.http = ""
	lines := bufio.NewReader(io.TeeReader(log, &a.said))
	for a.http == "" {
		line, err := lines.ReadString('\n')
		if _, rest, ok := strings.Cut(line, " http="); ok {
			a.http = "http://" + strings.Fields(rest)[0]
		}
		if err != nil {
			break
		}
	}
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, lines) }()
	a.end = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-drained
		return cmd.Wait()
	}
	if a.http == "" {
		t.Fatalf("hallmark-attestd ended:\n%s", a.said.String())
	}
}

func (a *authority) stop(t *testing.T) {
	t.Helper()
	if err := a.end(); err != nil {
		t.Errorf("hallmark-attestd: %v\n%s", err, a.said.String())
	}
}

// command runs one of the program's other commands.
func (a *authority) command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := a.program(t, args...).Output()
	if err != nil {
		t.Fatalf("hallmark-attestd %s: %v", args, err)
	}
	return string(out)
}

// authorityDir is a directory that the authority's user owns, with files.
func authorityDir(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "interop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		return dir
	}
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nobody, nobody)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// confirm is a GitLab that knows the sample job under any number, which is its
// token as well.
func confirm(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.Header.Get("JOB-TOKEN"), 10, 64)
	if r.URL.Path != "/api/v4/job" || err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	j := attesttest.Opened().Job
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client is gone
		"id": id, "status": "running", "name": j.Name, "stage": j.Stage, "ref": j.Ref, "tag": false,
		"commit": map[string]any{"id": j.SHA}, "user": map[string]any{"id": j.UserID},
		"pipeline": map[string]any{"id": j.PipelineID, "project_id": j.ProjectID, "sha": j.SHA},
		"web_url":  "https://gitlab.example.com/group/project/-/jobs/" + strconv.FormatInt(id, 10), "runner": map[string]any{"id": 7},
	})
}

// run takes a sample job that made content through its life, as a host would,
// and returns its bundle.
func (a *authority) run(ctx context.Context, t *testing.T) []byte {
	t.Helper()
	a.next++
	if err := a.host(ctx, a.next); err != nil {
		t.Fatalf("job: %s", client.Message(err))
	}
	var list struct {
		Attestations []struct {
			Bundle json.RawMessage `json:"bundle"`
		} `json:"attestations"`
	}
	if err := json.Unmarshal(a.get(t, "/v1/jobs/"+strconv.FormatInt(a.next, 10)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Attestations) != 1 {
		t.Fatalf("%d attestations", len(list.Attestations))
	}
	return list.Attestations[0].Bundle
}

func (a *authority) host(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stub, closer, err := client.Dial(ctx, a.socket)
	if err != nil {
		return err
	}
	defer closer.Close()
	o, token := attesttest.Opened(), strconv.FormatInt(id, 10)
	o.Job.ID = id
	res, err := stub.Open(ctx, &authoritypb.OpenRequest{
		Session: fmt.Sprintf("%032x", id), Profile: o.Profile, JobToken: token,
		Job: &authoritypb.JobFacts{
			Id: id, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
			PipelineId: o.Job.PipelineID, UserId: o.Job.UserID, Ref: o.Job.Ref, Sha: o.Job.SHA,
		},
	})
	if err != nil {
		return err
	}
	o.Session, o.Attempt, o.Nonce, o.InvocationID = fmt.Sprintf("%032x", id), res.GetAttempt(), res.GetNonce(), res.GetInvocationId()
	events := attesttest.JobOf(o)
	for i, ev := range events {
		if u, ok := ev.Data.(record.Upload); ok {
			u.Entries[1].SHA256 = fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
			events[i].Data = u
		}
	}
	lines, err := attesttest.Lines(time.Now().Add(-time.Minute), events)
	if err != nil {
		return err
	}
	sum, err := stub.Append(ctx, &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: lines})
	if err != nil {
		return err
	}
	_, err = stub.Close(ctx, &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: sum.GetHead(), JobToken: token})
	return err
}

func (a *authority) get(t *testing.T, path string) []byte {
	t.Helper()
	resp, err := http.Get(a.http + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return body
}

// question asks for what the authority signed, in the name of a signer.
func (a *authority) question(t *testing.T, bundle []byte, identity, issuer string) question {
	t.Helper()
	job := attesttest.Opened().External
	policy := fmt.Sprintf("builder_ids = %q\nissuer = %q\nsource = %q\nref = %q\n", builderID, issuer, job.Source, job.Ref)
	if identity != builderID {
		policy += fmt.Sprintf("[[signers]]\nbuilder_id = %q\nidentity = %q\n", builderID, identity)
	}
	return question{
		artifact: write(t, "app", []byte(content)), bundle: write(t, "app.sigstore.json", bundle),
		root: write(t, "trusted_root.json", a.get(t, "/trusted-root.json")), policy: write(t, "policy.toml", []byte(policy)),
		identity: identity, issuer: issuer,
	}
}
