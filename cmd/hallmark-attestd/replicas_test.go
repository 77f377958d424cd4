package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/integration/servers"
)

// fleetOf is where replicas of a test live.
type fleetOf struct {
	t      *testing.T
	root   string
	ca     string
	gitlab string
	store  fleet.Options
}

func newFleet(t *testing.T) *fleetOf {
	running, err := servers.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(running.Stop)
	root, err := os.MkdirTemp("", "attestd-fleet-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	gitlab := httptest.NewServer(http.HandlerFunc(fakeGitLab))
	t.Cleanup(gitlab.Close)
	f := &fleetOf{t: t, root: root, ca: running.CA(), gitlab: gitlab.URL, store: running.Fresh(t)}
	f.store.Database = running.RemoteURL(f.store.Bucket)
	f.check(os.Chmod(root, 0o711))
	return f
}

func (f *fleetOf) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// prepare makes a replica's state directory, with the keys of another one if
// it is given.
func (f *fleetOf) prepare(name, like string) {
	f.t.Helper()
	dir := filepath.Join(f.root, name)
	f.check(os.Mkdir(dir, 0o700))
	f.check(os.WriteFile(filepath.Join(dir, "credentials"), []byte(f.store.AccessKey+"\n"+f.store.SecretKey+"\n"), 0o600))
	f.check(os.WriteFile(filepath.Join(dir, "attestd.toml"), fmt.Appendf(nil, `
gitlab_url = %q
builder_uri = "https://ci.example.com/hallmark"
socket = "%s/attestd.sock"
hosts = ["%d"]
http = "127.0.0.1:0"
state_dir = %q
[log]
kind = "none"
[store]
database = %q
bucket = %q
endpoint = %q
endpoint_ca = %q
credentials_file = "%s/credentials"
`, f.gitlab, dir, os.Getuid(), dir, f.store.Database, f.store.Bucket, f.store.Endpoint, f.ca, dir), 0o600))
	if like != "" {
		from := filepath.Join(f.root, like)
		f.check(exec.Command("cp", "-a", filepath.Join(from, "keys"), filepath.Join(from, "commitment.key"), dir).Run())
	}
	if os.Geteuid() == 0 {
		f.check(exec.Command("chown", "-R", fmt.Sprint(authorityUser), dir).Run())
	}
}

func (f *fleetOf) command(name, what string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", what, "-config", filepath.Join(f.root, name, "attestd.toml"))
	cmd.Args[0] = "hallmark-attestd"
	cmd.Dir = filepath.Join(f.root, name)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: authorityUser, Gid: authorityUser}
	}
	return cmd
}

// A running replica.
type served struct {
	cmd  *exec.Cmd
	http string
	stub authoritypb.AuthorityClient
}

func (f *fleetOf) start(name string) *served {
	f.t.Helper()
	cmd := f.command(name, "serve")
	stderr, err := cmd.StderrPipe()
	f.check(err)
	f.check(cmd.Start())
	s := &served{cmd: cmd}
	f.t.Cleanup(s.kill)
	said := ""
	for lines := bufio.NewScanner(stderr); s.http == ""; {
		if !lines.Scan() {
			f.t.Fatalf("%s ended: %s", name, said)
		}
		said += lines.Text() + "\n"
		if _, rest, ok := strings.Cut(lines.Text(), " http="); ok {
			s.http = strings.Fields(rest)[0]
		}
	}
	stub, closer, err := client.Dial(f.t.Context(), filepath.Join(f.root, name, "attestd.sock"))
	f.check(err)
	f.t.Cleanup(func() { closer.Close() })
	s.stub = stub
	return s
}

func (s *served) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// TestReplicas runs two authorities on one store, and has a job go on at the
// second one when the first one was killed.
func TestReplicas(t *testing.T) {
	f := newFleet(t)
	f.prepare("first", "")
	first := f.start("first")
	f.prepare("second", "first")
	second := f.start("second")

	ctx, o := t.Context(), attesttest.Opened()
	opened, err := first.stub.Open(ctx, &authoritypb.OpenRequest{
		Session: o.Session, Profile: o.Profile, JobToken: "good",
		Job: &authoritypb.JobFacts{
			Id: o.Job.ID, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
			PipelineId: o.Job.PipelineID, UserId: o.Job.UserID, Ref: o.Job.Ref, Sha: o.Job.SHA,
		},
	})
	f.check(err)
	o.Attempt, o.Nonce, o.InvocationID = opened.GetAttempt(), opened.GetNonce(), opened.GetInvocationId()
	lines, err := attesttest.Lines(time.Now(), attesttest.JobOf(o))
	f.check(err)
	_, err = first.stub.Append(ctx, &authoritypb.AppendRequest{Attempt: o.Attempt, Lines: lines[:5]})
	f.check(err)
	first.kill()
	head, err := second.stub.Append(ctx, &authoritypb.AppendRequest{Attempt: o.Attempt, Lines: lines})
	f.check(err)
	end := &authoritypb.CloseRequest{Attempt: o.Attempt, Head: head.GetHead(), JobToken: "good"}
	closed, err := second.stub.Close(ctx, end)
	f.check(err)
	if len(closed.GetAttestations()) != 1 {
		t.Fatalf("%v", closed)
	}
	first = f.start("first")
	again, err := first.stub.Close(ctx, end)
	f.check(err)
	if !proto.Equal(closed, again) {
		t.Error("the replicas have two answers")
	}
	res, err := http.Get("http://" + first.http + "/v1/bundles/sha256:" + closed.GetAttestations()[0].GetSha256())
	f.check(err)
	defer res.Body.Close()
	var bundle bytes.Buffer
	_, err = bundle.ReadFrom(res.Body)
	f.check(err)
	if !bytes.Equal(bundle.Bytes(), closed.GetAttestations()[0].GetBundle()) {
		t.Errorf("read %s: %.100s", res.Status, bundle.Bytes())
	}

	// Who has another secret does not serve beside them.
	f.prepare("stranger", "")
	out, err := f.command("stranger", "serve").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "commitment.key is") {
		t.Errorf("%v: %s", err, out)
	}
}
