package forgery

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
)

const stateDir = "/var/lib/hallmark-attestd"

// secrets are the files that the authority keeps from others.
func secrets(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(stateDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the authority goes on writing meanwhile
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		out[path] = data
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	for _, data := range out {
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			keys++
		}
	}
	if keys == 0 {
		t.Fatalf("no private key in %s: the test would look for nothing", stateDir)
	}
	return out
}

// Case 1. The job looks in every place that it can run code in, for the file by
// content, and for anything that is called like the authority.
func TestFindTheSigningKey(t *testing.T) {
	t.Parallel()
	var digests []string
	for path, data := range secrets(t) {
		if bytes.Contains(data, []byte("PRIVATE KEY")) || filepath.Ext(path) == ".key" {
			sum := sha256.Sum256(data)
			digests = append(digests, hex.EncodeToString(sum[:]))
		}
	}
	look := []string{
		`find / '(' -path /proc -o -path /sys -o -path /dev -o -path /usr -o -path /var/lib/dpkg ')' -prune -o -type f -size -64k -exec sha256sum '{}' + 2>/dev/null | grep -F "$DIGESTS" | sed 's/^/FOUND /' || true`,
		`find / '(' -path /proc -o -path /sys -o -path /usr ')' -prune -o '(' -name '*attestd*' -o -name '*.sock' -o -type s ')' -print 2>/dev/null | sed 's/^/FOUND /'`,
		`grep -rl 'PRIVATE KEY' /etc /root /home /run /tmp /builds /cache /hallmark 2>/dev/null | sed 's/^/FOUND /' || true`,
		`cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -i -e '[a]ttestd' -e '[s]andboxd' | sed 's/^/FOUND /' || true`,
		`grep -e '[a]ttestd' /proc/self/mountinfo /proc/net/unix /proc/self/cgroup | sed 's/^/FOUND /' || true`,
		`ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '[a]ttestd' -e '[c]ontainerd' | sed 's/^/FOUND /' || true`,
		`echo looked everywhere in $PLACE`,
	}
	job := harness.Hermetic(append([]string{"PLACE=script"}, look...)...)
	job.Variables = []coordinator.Variable{{Key: "DIGESTS", Value: strings.Join(digests, "\n"), Public: true}}
	job.AfterScript = append([]string{"PLACE=after"}, look...)
	job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: append([]string{"PLACE=helper"}, look...)}}
	r := begin(t, job)
	succeeded(t, r, "\nlooked everywhere in script", "\nlooked everywhere in after", "\nlooked everywhere in helper")
	harness.Never(t, r, "\nFOUND ")
}

// Case 2. Whoever got out of the sandbox and became the runner's user, or a
// user of the job's own range, still has no way to the key, the store, the
// process or its socket.
func TestReadTheKeyAsTheRunner(t *testing.T) {
	t.Parallel()
	pid := theWorld.Attestd.PID()
	paths := []string{
		fmt.Sprintf("/proc/%d/mem", pid), fmt.Sprintf("/proc/%d/environ", pid), fmt.Sprintf("/proc/%d/maps", pid),
		fmt.Sprintf("/proc/%d/root/etc/passwd", pid),
	}
	for path := range secrets(t) {
		paths = append(paths, path, fmt.Sprintf("/proc/%d/root%s", pid, path))
	}
	for _, uid := range []uint32{world.RunnerUID, 65534, 0x70000000} {
		script := "ls " + stateDir + " 2>/dev/null; for f; do cat \"$f\" >/dev/null 2>&1 && echo \"READ $f\"; (: >> \"$f\") 2>/dev/null && echo \"WROTE $f\"; done; ls /proc/$PID/fd/ 2>/dev/null; kill -STOP $PID 2>/dev/null && echo STOPPED; true"
		cmd := exec.CommandContext(harness.Within(t, time.Minute), "/bin/sh", append([]string{"-c", script, "sh"}, paths...)...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", fmt.Sprintf("PID=%d", pid)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("user %d: %v\n%s", uid, err, out)
		}
	}
}

// Case 3. Wherever code of a job runs, no address, name, proxy or Host header
// leads to the authority.
func TestTalkToTheAuthority(t *testing.T) {
	t.Parallel()
	script := []string{}
	for _, host := range []string{"127.0.0.1:8470", "[::1]:8470", "localhost:8470", hostAddress + ":8470", "[" + hostIPv6 + "]:8470", "runner-host:8470", "169.254.169.254", "[fd00:ec2::254]", "0.0.0.0:8470", "[::ffff:127.0.0.1]:8470"} {
		script = append(script, "probe http GET http://"+host+"/trusted-root.json",
			"probe http GET http://"+world.PackagesName+"/trusted-root.json host="+host+" connect=127.0.0.1:8470",
			"http_proxy= HTTP_PROXY= probe http GET http://"+host+"/trusted-root.json")
	}
	script = append(script,
		"probe http GET http://"+world.PackagesName+"/trusted-root.json connect="+hostAddress+":8470",
		"probe net "+canary+" 2a00:db8:0:50::50 "+world.CanaryName+" | grep -e 'unix socket' -e 'abstract' -e '127.0.0.1' || true",
		"echo all tried")
	for name, job := range map[string]coordinator.Job{"hermetic": harness.Hermetic(script...), "firewalled": harness.Firewalled(script...)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{
				`for a in 127.0.0.1 ::1 ` + hostAddress + ` ` + hostIPv6 + `; do (exec 3<>/dev/tcp/$a/8470 && printf 'GET /trusted-root.json HTTP/1.0\r\n\r\n' >&3 && cat <&3) 2>/dev/null | sed 's/^/helper got: /' || true; done`,
			}}}
			r := begin(t, job)
			succeeded(t, r, "all tried")
			noEscape(t, r)
			harness.Never(t, r, "status 200", "certificateAuthorities", "helper got: HTTP/1.0 200", "helper got: HTTP/1.1 200")
		})
	}
}

// Case 6. A job presents the ID token of another one, as if it had stolen it. It
// is refused before it runs; the owner's counts as evidence for the owner.
func TestBringTheIDTokenOfAnotherJob(t *testing.T) {
	t.Parallel()
	owner := keeps(harness.Hermetic("echo out > out.txt"), "out.txt")
	owner.IDTokens = map[string]string{"HALLMARK_ID_TOKEN": world.BuilderURI}
	owning := harness.Begin(t, owner)
	var payload struct {
		Variables []coordinator.Variable `json:"variables"`
	}
	if err := json.Unmarshal(owning.Payload(), &payload); err != nil {
		t.Fatal(err)
	}
	thief := keeps(harness.Hermetic("echo not reached", "echo out > out.txt"), "out.txt")
	for _, v := range payload.Variables {
		if v.Key == "HALLMARK_ID_TOKEN" {
			thief.Variables = append(thief.Variables, v)
		}
	}
	if len(thief.Variables) != 1 {
		t.Fatalf("the owner has %d ID tokens", len(thief.Variables))
	}
	r := begin(t, thief)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	harness.Never(t, r, "\nnot reached")
	harness.Unattested(t, r)
	r = harness.Wait(t, owning)
	succeeded(t, r)
	harness.Attested(t, r)
}
