package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/sign/key/keytest"
)

var update = flag.Bool("update", false, "rewrite the expected output in the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hallmark-attestd": main})
}

// authorityUser is whom the authority runs as where the tests run as root.
const authorityUser = 65534

func TestScripts(t *testing.T) {
	// The authority's user must be able to reach its files.
	root, err := os.MkdirTemp("", "attestd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	if err := os.Chmod(root, 0o711); err != nil {
		t.Fatal(err)
	}
	gitlab := httptest.NewServer(http.HandlerFunc(fakeGitLab))
	t.Cleanup(gitlab.Close)
	sandboxd := sandboxdDir(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		WorkdirRoot:         root,
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GITLAB", gitlab.URL)
			e.Setenv("UID", strconv.Itoa(os.Getuid()))
			e.Setenv("PATH", sandboxd+":"+e.Getenv("PATH"))
			e.Values[daemonKey{}] = &daemon{}
			state := filepath.Join(e.WorkDir, "state")
			if err := os.Mkdir(state, 0o700); err != nil || os.Geteuid() != 0 {
				return err
			}
			return os.Chown(state, authorityUser, authorityUser)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("condition %q: unknown", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"attestd":    attestd,
			"start":      start,
			"stop":       stopDaemon,
			"kill":       killDaemon,
			"code":       code,
			"auditurl":   auditURLOfDaemon,
			"spoil":      spoil,
			"get":        get,
			"job":        job,
			"hostjob":    hostJob,
			"documented": documented,
			"envsubst":   envsubst,
			"firstkey":   firstKey,
			"secret":     secretFile,
			"softhsm":    func(ts *testscript.TestScript, _ bool, labels []string) { softHSM(t, ts, labels) },
		},
	})
}

// fakeGitLab confirms the sample job.
func fakeGitLab(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/api/v4/job" || r.Header.Get("JOB-TOKEN") != "good" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	j := attesttest.Opened().Job
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"id": j.ID, "status": "running", "name": j.Name, "stage": j.Stage, "ref": j.Ref, "tag": false,
		"commit": map[string]any{"id": j.SHA}, "user": map[string]any{"id": j.UserID},
		"pipeline": map[string]any{"id": j.PipelineID, "project_id": j.ProjectID, "sha": j.SHA},
		"web_url":  "https://gitlab.example.com/group/project/-/jobs/4242", "runner": map[string]any{"id": 7},
	})
}

// command runs this test's binary as the program, as the authority's user.
func command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "hallmark-attestd"
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+ts.Getenv("NOTIFY_SOCKET"), "SOFTHSM2_CONF="+ts.Getenv("SOFTHSM2_CONF"), "PATH="+ts.Getenv("PATH"))
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: authorityUser, Gid: authorityUser}}
	}
	return cmd
}

// attestd runs the program to its end.
func attestd(ts *testscript.TestScript, neg bool, args []string) {
	cmd := command(ts, args...)
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, ts.Stdout()), ts.Stderr()
	err := cmd.Run()
	if neg != (err != nil) {
		ts.Fatalf("hallmark-attestd: %v", err)
	}
}

// code runs the program to its end and wants an exit code: code N ARG...
func code(ts *testscript.TestScript, _ bool, args []string) {
	cmd := command(ts, args[1:]...)
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	err := cmd.Run()
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("hallmark-attestd: exit code %s, want %s: %v", got, args[0], err)
	}
}

// auditURLOfDaemon proves the log from what the daemon serves: auditurl ROOT SINCE.
func auditURLOfDaemon(ts *testscript.TestScript, neg bool, args []string) {
	attestd(ts, neg, []string{"log", "verify", "-url", "http://" + theDaemon(ts).http + "/log", "-trusted-root", args[0], "-since", args[1]})
}

// spoil changes a byte in the middle of a file.
func spoil(ts *testscript.TestScript, _ bool, args []string) {
	data, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

type daemonKey struct{}

// A daemon is the program while it serves.
type daemon struct {
	cmd    *exec.Cmd
	http   string
	hosts  string        // where hosts on other machines are served
	logged chan struct{} // closed once log is complete
	log    []string      // what the program said, for whoever has waited
}

// ended waits for the program's last word and hands its log to the test, whose
// own goroutine alone may write there.
func (d *daemon) ended(ts *testscript.TestScript) {
	<-d.logged
	for _, line := range d.log {
		ts.Logf("%s", line)
	}
}

func theDaemon(ts *testscript.TestScript) *daemon { return ts.Value(daemonKey{}).(*daemon) }

// start serves in the background, and returns when the program says that it is
// ready.
func start(ts *testscript.TestScript, neg bool, args []string) {
	d := theDaemon(ts)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ts.MkAbs("notify"), Net: "unixgram"})
	ts.Check(err)
	defer os.Remove(ts.MkAbs("notify"))
	defer notify.Close()
	ts.Check(os.Chmod(ts.MkAbs("notify"), 0o777))
	ts.Setenv("NOTIFY_SOCKET", ts.MkAbs("notify"))
	d.cmd = command(ts, args...)
	stderr, err := d.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(d.cmd.Start())
	ready := make(chan string, 1)
	d.logged, d.log = make(chan struct{}), nil
	go func() {
		defer close(d.logged)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			d.log = append(d.log, lines.Text())
			if _, rest, ok := strings.Cut(lines.Text(), " http="); ok {
				_, door, _ := strings.Cut(lines.Text(), " hosts=")
				d.hosts = strings.Fields(door)[0]
				ready <- strings.Fields(rest)[0]
			}
		}
		close(ready)
	}()
	var ok bool
	if d.http, ok = <-ready; !ok {
		d.ended(ts)
		ts.Fatalf("the daemon ended: %v", d.cmd.Wait())
	}
	ts.Check(notify.SetReadDeadline(time.Now().Add(2 * time.Minute)))
	buf := make([]byte, 64)
	n, err := notify.Read(buf)
	ts.Check(err)
	if string(buf[:n]) != "READY=1" {
		ts.Fatalf("systemd was told %q", buf[:n])
	}
	ts.Setenv("HOSTS", d.hosts)
	ts.Defer(func() { _ = d.cmd.Process.Kill() })
}

func stopDaemon(ts *testscript.TestScript, neg bool, _ []string) {
	d := theDaemon(ts)
	ts.Check(d.cmd.Process.Signal(syscall.SIGTERM))
	d.ended(ts)
	ts.Check(d.cmd.Wait())
}

func killDaemon(ts *testscript.TestScript, neg bool, _ []string) {
	d := theDaemon(ts)
	ts.Check(d.cmd.Process.Kill())
	d.ended(ts)
	_ = d.cmd.Wait()
}

// get reads a page.
func get(ts *testscript.TestScript, neg bool, args []string) {
	res, err := http.Get("http://" + theDaemon(ts).http + args[0])
	ts.Check(err)
	defer res.Body.Close()
	_, err = io.Copy(ts.Stdout(), res.Body)
	ts.Check(err)
	if neg != (res.StatusCode != http.StatusOK) {
		ts.Fatalf("%s: %s", args[0], res.Status)
	}
}

// job takes the sample job through its life, as a host on this machine: job
// SOCKET TOKEN.
func job(ts *testscript.TestScript, neg bool, args []string) {
	conn, err := client.DialSocket(ts.MkAbs(args[0]))
	ts.Check(err)
	attested(ts, neg, conn, args[1])
}

// hostJob does the same as a host that has joined: hostjob IDENTITY ADDRESS TOKEN.
func hostJob(ts *testscript.TestScript, neg bool, args []string) {
	id, err := client.OpenIdentity(ts.MkAbs(args[0]))
	ts.Check(err)
	conn, err := client.DialHost(args[1], id)
	ts.Check(err)
	attested(ts, neg, conn, args[2])
}

func attested(ts *testscript.TestScript, neg bool, conn *grpc.ClientConn, token string) {
	defer conn.Close()
	out, err := runJob(authoritypb.NewAuthorityClient(conn), token)
	if neg != (err != nil) {
		ts.Fatalf("%v", err)
	}
	if err != nil {
		fmt.Fprintln(ts.Stderr(), client.Message(err))
		return
	}
	for _, at := range out.GetAttestations() {
		for _, s := range at.GetSubjects() {
			fmt.Fprintln(ts.Stdout(), s.GetSha256(), s.GetName())
		}
	}
}

func runJob(stub authoritypb.AuthorityClient, token string) (*authoritypb.CloseResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o := attesttest.Opened()
	res, err := stub.Open(ctx, &authoritypb.OpenRequest{
		Session: o.Session, Profile: o.Profile, JobToken: token,
		Job: &authoritypb.JobFacts{
			Id: o.Job.ID, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
			PipelineId: o.Job.PipelineID, UserId: o.Job.UserID, Ref: o.Job.Ref, Sha: o.Job.SHA,
		},
	})
	if err != nil {
		return nil, err
	}
	o.Attempt, o.Nonce, o.InvocationID = res.GetAttempt(), res.GetNonce(), res.GetInvocationId()
	lines, err := attesttest.Lines(time.Now(), attesttest.JobOf(o))
	if err != nil {
		return nil, err
	}
	sum, err := stub.Append(ctx, &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: lines})
	if err != nil {
		return nil, err
	}
	return stub.Close(ctx, &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: sum.GetHead(), JobToken: "good"})
}

// firstKey sets FIRST to the id of the oldest key of a role, which the list that
// was printed last begins with: firstkey ROLE.
func firstKey(ts *testscript.TestScript, neg bool, args []string) {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if strings.HasPrefix(line, args[0]+"-") {
			ts.Setenv("FIRST", strings.Fields(line)[0])
			return
		}
	}
	ts.Fatalf("no %s key", args[0])
}

// secretFile writes a file for the authority's user alone: secret FILE TEXT.
func secretFile(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]), 0o600))
	if os.Geteuid() == 0 {
		ts.Check(os.Chown(ts.MkAbs(args[0]), authorityUser, authorityUser))
	}
}

// softHSM makes a token with a key of each label, for the authority's user, and
// sets HSM_LABEL to its URI.
func softHSM(t *testing.T, ts *testscript.TestScript, labels []string) {
	dir := ts.MkAbs("hsm")
	ts.Check(os.Mkdir(dir, 0o711))
	token := keytest.In(t, dir)
	for name, value := range token.Env() {
		ts.Setenv(name, value)
	}
	for i, label := range labels {
		ts.Setenv("HSM_"+label, token.Generate(label, fmt.Sprintf("%02d", i+1)))
	}
	if os.Geteuid() == 0 {
		ts.Check(filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chown(name, authorityUser, authorityUser))
		}))
	}
}

// envsubst replaces variables in files.
func envsubst(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
	}
}

func TestUserIDs(t *testing.T) {
	ids, err := userIDs([]string{"root", "0", "4242"})
	if err != nil || fmt.Sprint(ids) != "[0 0 4242]" {
		t.Errorf("%v, %v", ids, err)
	}
	for _, bad := range []string{"no-such-user-here", "-1", "4294967296", ""} {
		if _, err := userIDs([]string{bad}); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

func TestPool(t *testing.T) {
	if p, err := pool("gitlab_ca", ""); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := pool("gitlab_ca", file); err == nil {
		t.Error("a missing file: accepted")
	}
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pool("gitlab_ca", file); err == nil {
		t.Error("an empty trust store: accepted")
	}
}
