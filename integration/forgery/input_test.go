package forgery

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// Case 13. The repository itself sends git elsewhere, for a large file. It is
// asked for and not fetched.
func TestFetchSourcesFromElsewhere(t *testing.T) {
	t.Parallel()
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("a", 64) + "\nsize 12\n"
	if _, err := theWorld.Publish("group/lfs", "main", map[string]string{
		"README": "x\n", ".lfsconfig": "[lfs]\n\turl = https://" + world.CanaryName + "/lfs\n", ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "big.bin": pointer,
	}); err != nil {
		t.Fatal(err)
	}
	job := keeps(harness.Hermetic("echo out > out.txt", "cat big.bin"), "out.txt")
	job.Project, job.ProjectID = "group/lfs", 82
	job.Variables = []coordinator.Variable{{Key: "GIT_SUBMODULE_STRATEGY", Value: "recursive", Public: true}}
	r := begin(t, job)
	harness.Never(t, r, "CANARY")
	if blocked := harness.DataOf[record.Block](t, harness.Evidence(t, r), record.Blocked); !slices.ContainsFunc(blocked, func(b record.Block) bool {
		return strings.HasPrefix(b.Target, "https://"+world.CanaryName+"/lfs/")
	}) {
		t.Errorf("LFS was not tried: %+v", blocked)
	}
	if r.State == coordinator.Success {
		for _, d := range harness.Attested(t, r).Statement.Predicate.BuildDefinition.ResolvedDependencies {
			if strings.Contains(d.URI, world.CanaryName) {
				t.Errorf("%s is a dependency", d.URI)
			}
		}
		return
	}
	harness.Unattested(t, r)
}

// Case 13, and better than it: a hook has git fetch another branch of the job's
// own repository, whose content the build then reads. The border reads what git
// asks for, so that it is a dependency beside the commit; what only a server that
// hands out files would tell is refused.
func TestBuildFromAnotherBranch(t *testing.T) {
	t.Parallel()
	if _, err := theWorld.Publish("group/branches", "main", map[string]string{"README": "main\n"}); err != nil {
		t.Fatal(err)
	}
	other, err := theWorld.Publish("group/branches", "unreviewed", map[string]string{"evil": "unreviewed\n"})
	if err != nil {
		t.Fatal(err)
	}
	job := keeps(harness.Hermetic("cat ../branches.tmp/evil > out.txt"), "out.txt")
	job.Project, job.ProjectID = "group/branches", 83
	job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{
		"git -c protocol.version=0 fetch -q origin unreviewed", "git show FETCH_HEAD:evil > ../branches.tmp/evil",
		"GIT_SMART_HTTP=0 git ls-remote origin && echo 'dumb protocol: ESCAPE: it was served' || true",
	}}}
	r := begin(t, job)
	succeeded(t, r)
	noEscape(t, r)
	if got := exactly(t, r)["out.txt"]; got != "unreviewed\n" {
		t.Fatalf("out.txt holds %q: the attack did not work", got)
	}
	for _, d := range predicate(t, harness.Attested(t, r)).BuildDefinition.Dependencies {
		if strings.Contains(fmt.Sprint(d["annotations"]), other) {
			return
		}
	}
	t.Errorf("commit %s is no dependency", other)
}

// Case 30. What differs between hosts and days and could steer a build: the job
// has none of the host's devices, names, settings and sockets.
func TestUseAnInputThatNobodyRecords(t *testing.T) {
	t.Parallel()
	r := begin(t, harness.Hermetic(
		"echo dev: $(find /dev -type c -o -type b | sort | tr '\\n' ' ')",
		"echo host: $(hostname)", "echo zone: ${TZ:-none} $(find /etc -name localtime)", "echo stdin: $(wc -c)",
		"for p in /var/run/docker.sock /run/docker.sock /run/containerd /dev/kvm /dev/dri /dev/nvidia0 /dev/fuse /root/.docker /root/.netrc /root/.git-credentials /etc/gitconfig; do if [ -e $p ]; then echo $p': ESCAPE: it is there'; fi; done",
		"env | grep -e '^DOCKER_' -e '^KUBECONFIG' -e '^AWS_ACC' -e '^AWS_SEC' -e '^SSH_' -e '^TMPDIR=/var/lib' | sed 's/$/ : ESCAPE: of the host/' || true",
	))
	succeeded(t, r, "zone: none\n", "stdin: 0\n", fmt.Sprintf("host: job-%d\n", r.ID))
	noEscape(t, r)
	for line := range strings.Lines(harness.Plain(r.Trace)) {
		devices, found := strings.CutPrefix(line, "dev: ")
		if !found {
			continue
		}
		for _, d := range strings.Fields(devices) {
			switch d {
			case "/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/pts/ptmx":
			default:
				t.Errorf("the job has the device %s", d)
			}
		}
	}
}

// Case 31. The image's tag is moved while the job runs, so that who asks later
// finds another image. The statement names what ran, by digest.
func TestMoveTheTagUnderARunningJob(t *testing.T) {
	t.Parallel()
	tag, err := name.NewTag(world.RegistryName+":5000/ci/moving:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	move := func(recipe string) {
		t.Helper()
		pinned, err := name.NewDigest(theWorld.Pinned[recipe], name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		img, err := remote.Image(pinned)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img); err != nil {
			t.Fatal(err)
		}
	}
	move(images.Shell)
	job := keeps(harness.Hermetic("echo begun", "sleep 2", "echo out > out.txt"), "out.txt")
	job.Image.Name = tag.Name()
	attempt := harness.Begin(t, job)
	harness.WaitTrace(t, attempt, "O begun")
	move(images.Helper)
	r := harness.Wait(t, attempt)
	succeeded(t, r)
	_, digest, _ := strings.Cut(theWorld.Pinned[images.Shell], "@sha256:")
	for _, d := range predicate(t, harness.Attested(t, r)).BuildDefinition.Dependencies {
		if a, _ := d["annotations"].(map[string]any); a["role"] == "build" && a["kind"] == "image" {
			if got := fmt.Sprint(d["digest"]); !strings.Contains(got, digest) {
				t.Errorf("the build's image is %v, want sha256:%s", got, digest)
			}
			return
		}
	}
	t.Error("the build's image is no dependency")
}

// Case 32. GitLab offers a terminal in a job where the runner says that it has
// one. Ours says it has none.
func TestOpenATerminal(t *testing.T) {
	t.Parallel()
	for _, runner := range []string{world.Hermetic, world.Firewalled} {
		features := theWorld.GitLab.Features(runner)
		for within := harness.Within(t, time.Minute); features == nil && within.Err() == nil; features = theWorld.GitLab.Features(runner) {
			time.Sleep(50 * time.Millisecond)
		}
		if len(features) == 0 || features["terminal"] || features["session"] {
			t.Errorf("runner %s: features %v", runner, features)
		}
	}
}

// Case 29. Bytes that would come in past the record: every refused way is on
// record, and so is every byte that came.
func TestSmuggleAnInputPastTheRecord(t *testing.T) {
	t.Parallel()
	base := "http://" + world.PackagesName
	r := begin(t, harness.Firewalled(
		"wget -q -O - "+base+"/recorded",
		"probe http GET "+base+"/upgraded Upgrade=websocket Connection=Upgrade Sec-WebSocket-Key=dGhlIHNhbXBsZSBub25jZQ== Sec-WebSocket-Version=13",
		"probe http GET "+base+"/h2c Upgrade=h2c Connection=Upgrade,HTTP2-Settings HTTP2-Settings=AAMAAABkAAQCAAAAAAIAAAAA",
		"probe http GET "+base+"/ranged Range=bytes=2-5",
		"probe http GET https://"+world.PackagesName+"/fronted host="+world.CanaryName,
		"probe http GET https://"+world.PackagesName+"/fronted sni="+world.CanaryName,
		"nslookup -type=txt smuggled-data."+world.CanaryName+" || true", "nslookup smuggled-data."+world.PackagesName+" 8.8.8.8 || true",
		"printf 'GET /smuggled HTTP/1.1\\r\\nHost: "+world.PackagesName+"\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled2 HTTP/1.1\\r\\nHost: "+world.PackagesName+"\\r\\n\\r\\n' | nc -w 2 "+world.PackagesName+" 80 || true",
		"echo all tried"))
	succeeded(t, r, "all tried", "package /recorded")
	harness.Never(t, r, "status 101", "\npackage /smuggled", "\npackage /fronted", "CANARY")
	recorded := map[string]bool{}
	for _, f := range harness.DataOf[record.Fetch](t, harness.Evidence(t, r), record.Fetched) {
		recorded[f.URL] = true
	}
	for line := range strings.Lines(harness.Plain(r.Trace)) {
		if path, came := strings.CutPrefix(line, "package "); came && !recorded[base+strings.TrimSpace(path)] {
			t.Errorf("%s came in and is not on record", path)
		}
	}
}
