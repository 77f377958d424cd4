package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"hallmark.build/sandbox/containerd/initproto"
)

const (
	wall = 0x40000000 // __WALL: children of any kind
	// oomScore makes the kernel choose a stage's process before init when the
	// container's memory is used up.
	oomScore = "500"
	// defaultPath is where commands are looked for if the stage has no PATH.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// shells are tried in the order in which GitLab Runner's own detection does.
var shells = []string{
	"/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash",
	"/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh",
}

// A stage is a process of the host's asking with all its descendants.
type stage struct {
	seq   uint32
	pid   int
	start time.Time
	// stopping is set once the host signals the stage: from then on the host's
	// patience counts, and what the first process leaves behind has it too.
	stopping atomic.Bool
}

// begin starts a stage.
func begin(m initproto.Start, maxID uint32, fds []int) (*stage, *initproto.Failed) {
	who, err := lookup(etc, m.User, maxID)
	if err != nil {
		return nil, failure(m.Seq, initproto.NoUser, err.Error())
	}
	argv := m.Args
	if m.Shell {
		shell := firstExecutable(shells)
		if shell == "" {
			return nil, failure(m.Seq, initproto.NoShell, "no shell in "+strings.Join(shells, ", "))
		}
		argv = append(argv[:len(argv):len(argv)], shell)
	}
	path := command(argv[0], value(m.Env, "PATH"))
	if path == "" {
		return nil, failure(m.Seq, initproto.NoCommand, argv[0], "not found")
	}
	env := m.Env
	if value(env, "HOME") == "" {
		env = append(env[:len(env):len(env)], "HOME="+who.home)
	}
	st := &stage{seq: m.Seq, start: time.Now()}
	st.pid, err = spawn(path, argv, env, m.Dir, who, fds)
	if err != nil {
		return nil, failure(m.Seq, whose(path, err), argv[0], err.Error())
	}
	// Without this the stage still runs; init may then be chosen in its place.
	os.WriteFile("/proc/"+strconv.Itoa(st.pid)+"/oom_score_adj", []byte(oomScore), 0)
	return st, nil
}

// spawn runs path in dir, or in / if dir cannot be entered.
func spawn(path string, argv, env []string, dir string, who user, fds []int) (int, error) {
	attr := &syscall.ProcAttr{
		Dir: dir,
		Env: env,
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups},
		},
	}
	for _, fd := range fds {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		attr.Dir = "/"
	}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err == syscall.EACCES && attr.Dir != "/" {
		attr.Dir = "/"
		pid, err = syscall.ForkExec(path, argv, attr)
	}
	return pid, err
}

// whose tells the image's faults from the system's. A file that is there and
// still not found lacks its interpreter, or the loader of its C library.
func whose(path string, err error) initproto.Reason {
	if _, missing := os.Stat(path); errors.Is(missing, syscall.ENOENT) {
		return initproto.NoCommand
	}
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOEXEC),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.E2BIG),
		errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ELIBBAD),
		errors.Is(err, syscall.ETXTBSY), errors.Is(err, syscall.EPERM):
		return initproto.NotRun
	}
	return initproto.System
}

// wait ends when no process of the stage is left. As soon as the first one is
// gone the others are killed: a process with a SIGKILL pending cannot fork, so
// one kill reaches all of them, and every orphan becomes a child of init. Only
// in a stage that is being stopped they may end by themselves, until the host
// has them killed.
func (st *stage) wait() initproto.Exited {
	out := initproto.Exited{Seq: st.seq}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, wall, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			out.Duration = max(time.Since(st.start), 0)
			return out
		}
		if pid != st.pid {
			continue
		}
		st.pid = 0
		out.Code = uint8(status.ExitStatus())
		if status.Signaled() {
			out.Signal = uint8(status.Signal())
			out.Code = 128 + out.Signal
		}
		if !st.stopping.Load() {
			syscall.Kill(-1, syscall.SIGKILL)
		}
	}
}

// command finds an executable as execvp would.
func command(name, path string) string {
	if strings.Contains(name, "/") {
		return name
	}
	if path == "" {
		path = defaultPath
	}
	var list []string
	for dir := range strings.SplitSeq(path, ":") {
		if strings.HasPrefix(dir, "/") {
			list = append(list, dir+"/"+name)
		}
	}
	return firstExecutable(list)
}

func firstExecutable(paths []string) string {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// value finds a variable; the last one of its name counts, as in a shell.
func value(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], name+"="); ok {
			return v
		}
	}
	return ""
}
