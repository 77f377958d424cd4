package world

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A baseline is what is there before the first job.
type baseline struct {
	mounts, netns map[string]bool
}

// settle is how long what a job leaves may take to go.
const settle = 20 * time.Second

// Remember takes what is there now as what may be there later. The programs run.
func (w *World) Remember() {
	w.base = baseline{mounts: set(mounts()), netns: set(namespaces())}
}

// Leaks names what jobs left behind: processes, mounts, network namespaces,
// cgroups, directories of sessions. It waits a little for them to go.
func (w *World) Leaks() []string {
	var found []string
	deadline := time.Now().Add(settle)
	for {
		found = w.leaks()
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (w *World) leaks() []string {
	var out []string
	out = append(out, w.strayProcesses()...)
	for _, m := range mounts() {
		if !w.base.mounts[m] {
			out = append(out, "mount "+m)
		}
	}
	for _, n := range namespaces() {
		if !w.base.netns[n] {
			out = append(out, "network namespace "+n)
		}
	}
	for _, pattern := range []string{
		"/run/hallmark/sandboxd/*", "/run/hallmark/sandboxd/*/*", "/var/lib/hallmark/sandboxd/*", "/var/lib/hallmark/sandboxd/*/*",
		"/run/containerd/runc/*/*", "/run/containerd/s/*", "/tmp/ovl-idmapped*",
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return append(out, err.Error())
		}
		for _, name := range names {
			if filepath.Ext(name) == ".jsonl" {
				continue // evidence that the authority does not hold stays, on purpose
			}
			if session(filepath.Base(name)) || strings.Contains(name, "ovl-idmapped") || strings.HasPrefix(name, "/run/containerd/runc/") {
				out = append(out, "path "+name)
			}
		}
	}
	out = append(out, w.loops()...)
	return append(out, w.cgroups()...)
}

// loops are the devices of this world's sessions, whose names they carry. Devices
// are the whole machine's: other worlds have theirs beside them.
func (w *World) loops() []string {
	names, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return []string{err.Error()}
	}
	own := w.sessions()
	var out []string
	for _, name := range names {
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(name)))
		f, err := os.Open(device)
		if err != nil {
			continue // it went just now
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		f.Close()
		if err == nil && own[unix.ByteSliceToString(info.File_name[:])] {
			out = append(out, "loop device "+device)
		}
	}
	return out
}

// sessions are those that the sandbox daemon's log names.
func (w *World) sessions() map[string]bool {
	own := map[string]bool{}
	if w.Sandboxd != nil {
		for _, m := range sessionInLog.FindAllStringSubmatch(w.Sandboxd.Log(), -1) {
			own[m[1]] = true
		}
	}
	return own
}

// session reports whether a name is a sandbox's handle or begins with one.
func session(name string) bool {
	if len(name) < 32 {
		return false
	}
	return strings.Trim(name[:32], "0123456789abcdef") == ""
}

// strayProcesses are all but this program and what it started itself, process 1,
// the daemons, and the containerd that sandboxd keeps.
func (w *World) strayProcesses() []string {
	own := map[string]bool{"1": true, fmt.Sprint(os.Getpid()): true}
	for _, d := range []*Daemon{w.Attestd, w.Sandboxd, w.Dockerd, w.Runner} {
		if d != nil {
			own[fmt.Sprint(d.PID())] = true
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, dir := range dirs {
		pid := filepath.Base(dir)
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || own[pid] || parent(dir) == os.Getpid() {
			continue
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if filepath.Base(args[0]) == "containerd" && w.Sandboxd != nil && w.Sandboxd.PID() != 0 {
			continue
		}
		if len(line) == 0 { // a zombie that process 1 is about to bury
			name, err := os.ReadFile(filepath.Join(dir, "comm"))
			if err != nil {
				continue
			}
			args = []string{"[" + string(bytes.TrimSpace(name)) + "]"}
		}
		out = append(out, "process "+pid+" "+strings.Join(args, " "))
	}
	return out
}

// parent is a process's, or 0.
func parent(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "\nPPid:\t")
	digits, _, _ := strings.Cut(after, "\n")
	n, _ := strconv.Atoi(digits)
	return n
}

func mounts() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) > 4 {
			out = append(out, fields[4])
		}
	}
	return out
}

// namespaces are the network namespaces that any process or descriptor holds.
func namespaces() []string {
	var out []string
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return []string{err.Error()}
		}
		for _, name := range names {
			target, err := os.Readlink(name)
			if err == nil && strings.HasPrefix(target, "net:[") {
				out = append(out, target)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var sessionInLog = regexp.MustCompile(`\bs(?:ession|andbox)="?([0-9a-f]{32})`)

// cgroups of this world's sessions, in whatever hierarchies there are. Cgroups
// are the whole machine's: other worlds have theirs beside them.
func (w *World) cgroups() []string {
	var out []string
	own := w.sessions()
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return []string{err.Error()}
	}
	for _, root := range append(roots, "/sys/fs/cgroup") {
		for _, depth := range []string{"hallmark*/*", "hallmark*/*/*", "*/hallmark*/*"} {
			names, err := filepath.Glob(filepath.Join(root, depth))
			if err != nil {
				return []string{err.Error()}
			}
			for _, name := range names {
				if info, err := os.Stat(name); err == nil && info.IsDir() && session(filepath.Base(name)) && own[filepath.Base(name)[:32]] {
					out = append(out, "cgroup "+name)
				}
			}
		}
	}
	return out
}

func set(list []string) map[string]bool {
	out := map[string]bool{}
	for _, s := range list {
		out[s] = true
	}
	return out
}
