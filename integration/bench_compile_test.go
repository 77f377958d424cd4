package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	runc "github.com/containerd/containerd/api/types/runc/options"
	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// The compiled project.
const (
	compiled        = "filippo.io/age"
	compiledVersion = "v1.3.2"
	compiledSum     = "h1:r6RSZLFSMm6rzKepZ7ZAYkKCu14f3/Me8c7uKYh7C8c="
	compiledProject = "bench/age"
)

// compileScript compiles from nothing and tells what that took. Both sides run
// it in the same image, at the same path, with everything on a disk.
var compileScript = []string{
	"export GOCACHE=/root/cold-cache GOTMPDIR=/root",
	"TIMEFORMAT='compiled: real %3R user %3U system %3S'",
	"time go build -trimpath -o /root/out/ ./cmd/age ./cmd/age-keygen",
}

var compileTime = regexp.MustCompile(`(?m)^compiled: real ([\d.]+) user ([\d.]+) system ([\d.]+)$`)

// BenchmarkCompile is the compile of a real project in the sandbox, and in a
// container of the same image as `ctr run --net-host` makes it: the same
// containerd and runc, but the host's network, no user namespace, no seccomp
// profile, no limits. Job and container are not counted, the compile alone is.
func BenchmarkCompile(b *testing.B) {
	tree := compiledDir(theWorld.Root)
	if _, err := theWorld.PublishDir(compiledProject, "main", tree); err != nil {
		b.Fatal(err)
	}
	others := newPlainContainers(b, theWorld.Pinned[images.Go])
	var times series
	sandboxed := func() {
		addCompile(b, &times, ours, timeJob(b, coordinator.Job{
			Project: compiledProject, Runner: world.Hermetic, Script: compileScript,
			Image: coordinator.Image{Name: theWorld.Images[images.Go]},
		}).Trace)
	}
	contained := func() {
		script := "set -e; cd /builds/" + compiledProject + "\n" + strings.Join(compileScript, "\n")
		addCompile(b, &times, "plain", others.run(b, tree, "/builds/"+compiledProject, script))
	}
	sandboxed() // pulls, and brings everything into memory
	contained()
	times = series{}
	inTurns(b, sandboxed, contained)
	times.table(b, ours, "plain")
	times.report(b, compileReal, "compile", ours, "plain")
	times.report(b, compileCPU, "compile-cpu", ours, "plain")
}

// What is timed of a compile. Its processor time depends less on what else the
// machine does.
const (
	compileReal = "compile"
	compileCPU  = "compile, processor time"
	compileSys  = "compile, of it the kernel's"
)

func addCompile(b *testing.B, times *series, side, log string) {
	b.Helper()
	m := compileTime.FindStringSubmatch(plain(log))
	if m == nil {
		b.Fatalf("the compile does not tell its time:\n%s", plain(log))
	}
	seconds := func(s string) time.Duration {
		d, err := time.ParseDuration(s + "s")
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
	user, system := seconds(m[2]), seconds(m[3])
	times.add(side, compileReal, seconds(m[1]))
	times.add(side, compileCPU, user+system)
	times.add(side, compileSys, system)
}

// plainContainers are what everybody else runs jobs in: an image on sandboxd's
// containerd, in a namespace of its own.
type plainContainers struct {
	client *client.Client
	image  client.Image
	dir    string
	count  int
}

// plainCgroup is the parent of their cgroups.
const plainCgroup = "hallmark-bench"

func newPlainContainers(b *testing.B, image string) *plainContainers {
	b.Helper()
	c, err := client.New("/run/hallmark/sandboxd/containerd/api/c.sock", client.WithDefaultNamespace("bench"))
	if err != nil {
		b.Fatal(err)
	}
	p := &plainContainers{client: c}
	if p.dir, err = theWorld.Temp("bench"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(c.Close(), os.RemoveAll(p.dir), removePlainCgroups()); err != nil {
			b.Error(err)
		}
	})
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))
	p.image, err = c.Pull(b.Context(), image, client.WithPullUnpack, client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})))
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func removePlainCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + plainCgroup, "/sys/fs/cgroup/" + plainCgroup} {
		names, err := filepath.Glob(pattern)
		errs = append(errs, err)
		for _, name := range names {
			errs = append(errs, os.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// run runs a script over a fresh copy of a tree, mounted at target, and returns
// what it said.
func (p *plainContainers) run(b *testing.B, tree, target, script string) string {
	b.Helper()
	p.count++
	id := fmt.Sprintf("bench-%d", p.count)
	const output = ".output" // a file, since streams would take named pipes
	work := filepath.Join(p.dir, id)
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, os.DirFS(tree)); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), benchTime)
	defer cancel()
	ctr, err := p.client.NewContainer(ctx, id,
		client.WithSnapshotter("overlayfs"),
		client.WithNewSnapshot(id, p.image),
		client.WithRuntime("/usr/lib/hallmark/containerd-shim-runc-v2", &runc.Options{
			BinaryName: "/usr/lib/hallmark/runc", Root: filepath.Join(p.dir, "runc"),
		}),
		client.WithNewSpec(
			oci.WithImageConfig(p.image),
			oci.WithProcessArgs("/bin/bash", "-c", "exec >"+target+"/"+output+" 2>&1\n"+script),
			oci.WithHostNamespace(specs.NetworkNamespace),
			oci.WithMounts([]specs.Mount{{Destination: target, Type: "bind", Source: work, Options: []string{"rbind", "rw"}}}),
			oci.WithCgroup("/"+plainCgroup+"/"+id),
		))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := ctr.Delete(context.WithoutCancel(ctx), client.WithSnapshotCleanup); err != nil {
			b.Error(err)
		}
	}()
	return finish(ctx, b, ctr, filepath.Join(work, output))
}

// finish starts the container's process, waits for its end and returns what it
// left in a file.
func finish(ctx context.Context, b *testing.B, ctr client.Container, output string) string {
	b.Helper()
	task, err := ctr.NewTask(ctx, cio.NullIO)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if _, err := task.Delete(context.WithoutCancel(ctx), client.WithProcessKill); err != nil {
			b.Error(err)
		}
	}()
	exited, err := task.Wait(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		b.Fatal(err)
	}
	status := <-exited
	said, err := os.ReadFile(output)
	if code, _, statusErr := status.Result(); err != nil || statusErr != nil || code != 0 {
		b.Fatalf("plain container: exit %d, %v\n%s", code, errors.Join(statusErr, err), said)
	}
	return string(said)
}

// compiledDir is where the project's tree is kept between runs.
func compiledDir(root string) string {
	return filepath.Join(root, ".cache", "bench", "age-"+compiledVersion)
}

// fetchCompiled makes that tree: the module's files, its dependencies vendored.
func fetchCompiled(root string) error {
	dir := compiledDir(root)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	download := exec.Command("go", "mod", "download", "-json", compiled+"@"+compiledVersion)
	download.Dir = os.TempDir() // in no module, so that no go.mod has a say
	out, err := download.Output()
	if err != nil {
		return fmt.Errorf("download %s: %w", compiled, err)
	}
	var m struct{ Dir, Sum string }
	if err := json.Unmarshal(out, &m); err != nil {
		return err
	}
	if m.Sum != compiledSum {
		return fmt.Errorf("%s@%s is %s, want %s", compiled, compiledVersion, m.Sum, compiledSum)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := copyWritable(work, m.Dir); err != nil {
		return err
	}
	vendor := exec.Command("go", "mod", "vendor")
	vendor.Dir = work
	vendor.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	if out, err := vendor.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod vendor: %w\n%s", err, out)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// copyWritable copies a module out of the module cache, where nothing can be
// written.
func copyWritable(to, from string) error {
	defer syscall.Umask(syscall.Umask(0o022))
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.Chmod(name, info.Mode().Perm()|0o200)
	})
}
