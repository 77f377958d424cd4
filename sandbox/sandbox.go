// Package sandbox defines one isolated run: what may run, where, and how it ended.
//
// It holds only values. How a run is carried out stands in sandbox/containerd
// (processes), sandbox/egress (network), sandbox/workspace (files) and
// sandbox/host (order of events).
package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// A Role says which of an attempt's containers is meant. Each has a pid namespace
// of its own, and a network namespace, which services share with the build; no
// role is trusted.
type Role string

const (
	// Build is the container made from the job's image: tenant-authored
	// stages run there.
	Build Role = "build"
	// Helper is the container in which the scripts that GitLab Runner
	// generates run: git, caches, artifacts. They export the tenant's
	// variables, so what runs there is the tenant's all the same.
	Helper Role = "helper"
)

// ServiceRole is the container of a job's service, counted from 0. Services join
// the build container's network, as they must to be reached by name on any port
// without a device in it; pid, ipc, mount and user namespace are their own, so
// that they can neither signal nor trace what the build runs. They have the
// job's range of ids, for the work tree that they share with the build: its
// files would belong to nobody in another range.
func ServiceRole(n int) Role { return Role("service" + strconv.Itoa(n)) }

// A Profile is the security mode that an admin offers. A project picks it by tag.
type Profile string

const (
	// Hermetic lets tenant stages reach nothing.
	Hermetic Profile = "hermetic"
	// Firewalled lets tenant stages reach the hosts on the admin's allow-list,
	// every exchange recorded.
	Firewalled Profile = "firewalled"
)

// ParseProfile refuses every name that is not a profile.
func ParseProfile(name string) (Profile, error) {
	switch p := Profile(name); p {
	case Hermetic, Firewalled:
		return p, nil
	}
	return "", fmt.Errorf("profile %q: want %q or %q", name, Hermetic, Firewalled)
}

// A Stage is one call of the runner, by the name that the runner gives it.
type Stage string

// Stages whose names the rest of the program depends on.
const (
	PrepareScript     Stage = "prepare_script"
	GetSources        Stage = "get_sources"
	ClearWorktree     Stage = "clear_worktree"
	RestoreCache      Stage = "restore_cache"
	DownloadArtifacts Stage = "download_artifacts"
	BuildScript       Stage = "build_script"
	StepScript        Stage = "step_script"
	AfterScript       Stage = "after_script"
	ArchiveCache      Stage = "archive_cache"
	ArchiveCacheFail  Stage = "archive_cache_on_failure"
	UploadSuccess     Stage = "upload_artifacts_on_success"
	UploadFailure     Stage = "upload_artifacts_on_failure"
	CleanupFiles      Stage = "cleanup_file_variables"
)

// Services is no stage of the runner's. It stands for the time in which services
// run and no tenant stage does.
const Services Stage = "services"

// Tenant reports whether the tenant wrote what runs: such stages run in the
// build container, all others in the helper.
func (s Stage) Tenant() bool {
	return s == Services || s == BuildScript || s == AfterScript || strings.HasPrefix(string(s), "step_")
}

// Known reports whether the stage is one that GitLab Runner 19.4 may ask for.
// An unknown stage is a system failure, never a tenant's.
func (s Stage) Known() bool {
	switch s {
	case PrepareScript, GetSources, ClearWorktree, RestoreCache, DownloadArtifacts,
		ArchiveCache, ArchiveCacheFail, UploadSuccess, UploadFailure, CleanupFiles:
		return true
	}
	return s.Tenant() && s != Services
}

// Role is the container that the stage runs in.
func (s Stage) Role() Role {
	if s.Tenant() {
		return Build
	}
	return Helper
}

// Upload reports whether the stage sends outputs to GitLab.
func (s Stage) Upload() bool { return s == UploadSuccess || s == UploadFailure }

// Sealing reports whether the workspace must be sealed before the stage starts:
// from then on outputs are read.
func (s Stage) Sealing() bool {
	return s == ArchiveCache || s == ArchiveCacheFail || s.Upload()
}

// A Mount makes a file or directory of the host visible in a container. Mounts
// are always nosuid and nodev.
type Mount struct {
	Source   string // absolute path on the host
	Target   string // absolute path in the container
	ReadOnly bool
	// Follow lets mounts that the host makes below Source later on appear in
	// the container too (rslave): sealing needs it.
	Follow bool
}

// IDs is the range of host user and group ids that a container's ids map to:
// container id 0 is host id First.
type IDs struct {
	First uint32
	Count uint32
}

// Spec is all that a runtime needs to make one container. It names no
// credentials and nothing of the tenant's but Env.
type Spec struct {
	Session  string // the sandbox's handle: names cgroup, container, snapshot
	Role     Role
	Image    string // reference by digest: name@sha256:...
	Hostname string
	NetNS    string // path of the network namespace, e.g. /proc/123/fd/9
	IDs      IDs
	Limits   Limits
	Mounts   []Mount
	ReadOnly bool // root file system
	// Dirs are directories that the image says it has: those that are missing
	// are made. Such that lie where the runtime or a mount is are passed over.
	Dirs []string
	// Scratch is a directory of the host, made by the runtime, that takes what the
	// container writes to its root file system. Empty: the runtime's own, which
	// nothing bounds.
	Scratch string
	// CA is the PEM certificate of the job's own authority, added to the trust
	// stores that the image has before anything else runs.
	CA []byte
}

// Process is one stage's process in a container that is already running.
type Process struct {
	// Args is the command. If Shell is set it is an entrypoint that must exec
	// its arguments (often empty), and the first shell that the container has,
	// in the order of GitLab's own detection, is appended: it reads Stdin.
	Args                  []string
	Shell                 bool
	Env                   []string // KEY=value; PATH included
	Dir                   string   // absolute; falls back to / where it does not exist
	User                  string   // "", "uid", "uid:gid", "name" or "name:group", resolved inside
	Stdin, Stdout, Stderr *os.File
	Grace                 time.Duration // from SIGTERM to SIGKILL when the context ends
}

// Exit is how a process ended, as its container's init saw it.
type Exit struct {
	Code     int  // 0 to 255; 128+signal when killed by one
	Signal   int  // 0, or the signal that killed it
	OOM      bool // the container's memory limit was hit while it ran
	Duration time.Duration
}

// A UserError is a failure for which the job, its script or its image is to
// blame: GitLab shows it as a script failure, and it is not retried.
type UserError struct {
	Err  error
	Hint string // what the reader can do; may be empty
}

func (e *UserError) Error() string { return e.Err.Error() }
func (e *UserError) Unwrap() error { return e.Err }

// A SecurityError is a failure in which evidence contradicts itself. It is
// never retried, and the attempt is never attested.
type SecurityError struct{ Err error }

func (e *SecurityError) Error() string { return "security: " + e.Err.Error() }
func (e *SecurityError) Unwrap() error { return e.Err }
