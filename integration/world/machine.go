package world

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Users of the world.
const (
	RunnerUID   = 64098
	AttestdUID  = 64099
	runnerUser  = "gitlab-runner"
	attestdUser = "hallmark-attestd"
)

// machine lays out the runner host's file system: what the real one has, with
// throw-away layers where we write. Scratch is on a disk, because a container's
// layers cannot lie on a layer.
func machine(scratch, root string) error {
	if err := unix.Mount("hallmark-run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	layers := "/run/layers"
	for _, dir := range []string{"/etc", "/usr/lib", "/var/lib"} {
		if err := throwAway(dir, layers); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		path  string
		mode  os.FileMode
		owner int
	}{
		{"/var/lib/hallmark", 0o755, 0},
		{"/var/lib/hallmark-attestd", 0o700, AttestdUID},
		{"/var/lib/gitlab-runner", 0o755, RunnerUID},
		{"/usr/lib/hallmark", 0o755, 0},
	} {
		if err := bindDisk(d.path, filepath.Join(scratch, filepath.Base(d.path)+"-"+filepath.Base(filepath.Dir(d.path))), d.mode, d.owner); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		path  string
		mode  os.FileMode
		owner int
	}{
		{"/etc/hallmark", 0o755, 0},
		{"/etc/gitlab-runner", 0o700, RunnerUID},
		{"/run/hallmark", 0o755, 0},
		{"/run/hallmark-attestd", 0o755, AttestdUID},
	} {
		if err := makeDir(d.path, d.mode, d.owner); err != nil {
			return err
		}
	}
	for _, name := range []string{"hallmark", "hallmark-executor", "hallmark-sandboxd", "hallmark-attestd", "hallmark-init", "containerd", "containerd-shim-runc-v2", "runc", "gitlab-runner"} {
		if err := install(program(root, name), filepath.Join("/usr/lib/hallmark", name)); err != nil {
			return err
		}
	}
	return accounts()
}

// throwAway puts a layer in memory over a directory.
func throwAway(dir, layers string) error {
	base := filepath.Join(layers, strings.ReplaceAll(dir, "/", "-"))
	for _, sub := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(base, sub), 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", dir, base, base)
	if err := unix.Mount("hallmark-layer", dir, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount a layer over %s: %w", dir, err)
	}
	return nil
}

// bindDisk makes a directory of the scratch disk appear at a path.
func bindDisk(path, source string, mode os.FileMode, owner int) error {
	if err := makeDir(source, mode, owner); err != nil {
		return err
	}
	if err := makeDir(path, 0o755, 0); err != nil {
		return err
	}
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, err)
	}
	return nil
}

func makeDir(path string, mode os.FileMode, owner int) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	return os.Chown(path, owner, owner)
}

// install copies a program. Hard links would share ownership with the checkout.
func install(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// accounts adds the two users, in place of any of the same name.
func accounts() error {
	for _, f := range []struct{ file, format string }{
		{"/etc/passwd", "%s:x:%d:%[2]d::/var/lib/%[1]s:/usr/sbin/nologin\n"},
		{"/etc/group", "%s:x:%d:\n"},
	} {
		data, err := os.ReadFile(f.file)
		if err != nil {
			return err
		}
		var out bytes.Buffer
		for line := range bytes.Lines(data) {
			if !bytes.HasPrefix(line, []byte(runnerUser+":")) && !bytes.HasPrefix(line, []byte(attestdUser+":")) {
				out.Write(line)
			}
		}
		fmt.Fprintf(&out, f.format, runnerUser, RunnerUID)
		fmt.Fprintf(&out, f.format, attestdUser, AttestdUID)
		if err := os.WriteFile(f.file, out.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// names tells the machine who is who on its internet. Everything else is asked
// of the canary, which never knows.
func names() error {
	hosts := "127.0.0.1 localhost runner-host\n::1 localhost\n"
	for _, s := range servers {
		hosts += s.addr + " " + s.name + "\n"
	}
	for file, content := range map[string]string{
		"/etc/hosts":         hosts,
		"/etc/resolv.conf":   "nameserver " + canary4 + "\noptions timeout:1 attempts:1\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	} {
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte("runner-host"))
}
