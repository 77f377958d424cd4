package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
	"hallmark.build/sandbox/workspace"
)

// deadlineSlack is how long after a job's own time limit its sandbox may live:
// uploads and teardown come after it.
const deadlineSlack = 2 * time.Hour

// prepare opens the attempt and builds its sandbox. Whatever it built is gone
// again when it fails.
func (h *Host) prepare(ctx context.Context, conn *executor.Conn, out *joblog.Log) error {
	req := conn.Request()
	profile, err := sandbox.ParseProfile(req.Profile)
	if err != nil {
		return &hintedError{err, "give -profile in the runner's config.toml; `hallmark runner config` prints it"}
	}
	payload, err := readPayload(conn.Files().Payload)
	if err != nil {
		return err
	}
	if err := h.accept(payload); err != nil {
		return err
	}
	services, warnings, err := h.planServices(payload, profile)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		out.Warn(w)
	}
	j := &job{
		session: req.Session, profile: profile, payload: payload,
		runner: parentOf(conn.Peer().PID), started: time.Now(),
		dir: h.jobDir(req.Session), recordPath: filepath.Join(h.records(), req.Session+".jsonl"),
		env: map[sandbox.Role][]string{}, spool: h.cfg.Spool, services: services,
	}
	if j.limits, err = h.boundsOf(payload); err != nil {
		return err
	}
	if err := h.room(); err != nil {
		return err
	}
	if exists(req.TempDir) {
		j.tempDir = req.TempDir
	}
	j.life, j.stop = context.WithCancel(context.WithoutCancel(ctx))
	j.mu.Lock() // before anyone can find it half-built
	defer j.mu.Unlock()
	if err := h.adopt(j); err != nil {
		j.runner.close()
		return err
	}
	ctx, cancel := j.bound(ctx)
	defer cancel()
	if err := h.build(ctx, j, req, out); err != nil {
		j.results.note("", "system_failure", 0)
		h.finish(j, j.logger(h.log))
		return errors.Join(err, h.teardown(j))
	}
	return nil
}

// bound ends ctx with the job's life.
func (j *job) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(j.life, func() { cancel(errTakenDown) })
	return ctx, func() { stop(); cancel(nil) }
}

func readPayload(f *os.File) (*executor.Job, error) {
	if f == nil {
		return nil, errors.New("the driver passed no job payload")
	}
	data, err := executor.ReadFile(f, executor.MaxPayload)
	if err != nil {
		return nil, fmt.Errorf("read the job payload: %w", err)
	}
	return executor.ParseJob(data)
}

// accept refuses jobs that could not be attested truthfully.
func (h *Host) accept(j *executor.Job) error {
	repo, err := j.Repository()
	tooMuch := j.CheckVariables(buildsDir, h.cfg.RunnerVersion)
	switch {
	case err != nil:
		return err
	case tooMuch != nil:
		return &sandbox.UserError{Err: tooMuch, Hint: "refer to fewer variables in variables, or to shorter ones"}
	case len(j.Unknown) > 0:
		return &hintedError{fmt.Errorf("the job payload has a field that this version does not know: %s", j.Unknown[0]),
			"the statement could not be complete; upgrade Hallmark to one that knows this GitLab Runner"}
	case repo.Scheme != h.cfg.GitLab.Scheme || repo.Host != h.cfg.GitLab.Host:
		return &hintedError{fmt.Errorf("the job comes from %s://%s, this host works for %s", repo.Scheme, repo.Host, h.cfg.GitLab),
			"set gitlab_url in the sandbox daemon's configuration"}
	case j.Switch("RUNNER_GENERATE_ARTIFACTS_METADATA"):
		return &sandbox.UserError{Err: errors.New("RUNNER_GENERATE_ARTIFACTS_METADATA is set: the runner would write its own, unsigned statement into the sealed work tree"),
			Hint: "remove the variable; what Hallmark signs takes its place"}
	case j.Image.Name == "" && h.cfg.DefaultImage == "":
		return &sandbox.UserError{Err: errors.New("the job names no image"), Hint: "set `image:` in .gitlab-ci.yml"}
	}
	return nil
}

// adopt makes the job known under its session.
func (h *Host) adopt(j *job) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, taken := h.jobs[j.session]; taken {
		return fmt.Errorf("session %s was prepared already", j.session)
	}
	h.jobs[j.session] = j
	return nil
}

// build takes the steps of prepare in their order.
func (h *Host) build(ctx context.Context, j *job, req executor.Request, out *joblog.Log) error {
	section := out.Section("hallmark_prepare", fmt.Sprintf("Preparing the sandbox (profile %s)", j.profile), true)
	defer section.End()
	pol := h.policyFor(j)
	if err := h.open(ctx, j, req, pol); err != nil {
		return err
	}
	ahead, forgo := h.helperAhead(ctx, j)
	defer forgo()
	build, err := h.gather(ctx, j, pol, ahead, out)
	if err != nil {
		return err
	}
	if err := h.fetchServices(ctx, j, out); err != nil {
		return err
	}
	leave, err := h.preparing.enter(ctx, j.payload.Info.ProjectFullPath, func(others int) {
		out.Printf("waiting until others' sandboxes are made, %d jobs wait already", others)
	})
	if err != nil {
		return err
	}
	defer leave()
	if err := h.create(ctx, j, build, ahead); err != nil {
		return err
	}
	leave()
	out.Printf("image   %s", build.Reference)
	out.Printf("network %s", networkInWords(j.profile, len(h.cfg.Allow)))
	out.Printf("limits  %s", j.limits.inWords())
	for _, line := range j.limits.tightened() {
		out.Printf("        %s", line)
	}
	out.Printf("record  attempt %s, sandbox ready in %.1f s", j.opened.Attempt, time.Since(j.started).Seconds())
	return j.pump.acknowledged(ctx)
}

// gather encloses the sandbox and gets its images, of which none waits for
// another, and returns the build's.
func (h *Host) gather(ctx context.Context, j *job, pol policy.Policy, helper *ahead, out *joblog.Log) (build image.Image, err error) {
	var both errgroup.Group
	both.Go(func() error {
		if err := h.enclose(ctx, j, pol, out); err != nil {
			return err
		}
		close(helper.enclosed)
		return nil
	})
	both.Go(func() (err error) {
		wishes, err := h.wishes(ctx, j, out)
		if err != nil {
			return err
		}
		helper.wish <- wishes[sandbox.Helper]
		if build, err = wishes[sandbox.Build].come(ctx); err != nil {
			return err
		}
		return j.noteImage(record.Image{Role: string(sandbox.Build)}, build)
	})
	err = both.Wait()
	return build, err
}

// enclose makes what a sandbox has apart from its containers.
func (h *Host) enclose(ctx context.Context, j *job, pol policy.Policy, out *joblog.Log) (err error) {
	if j.ids, err = h.ids.take(); err != nil {
		return err
	}
	if err := h.furnish(ctx, j); err != nil {
		return err
	}
	if j.space, err = workspace.Create(filepath.Join(j.dir, "workspace"), j.ids); err != nil {
		return err
	}
	if err := h.openBorder(ctx, j, pol, out); err != nil {
		return err
	}
	// The border keeps them for the containers.
	for _, role := range []sandbox.Role{sandbox.Build, sandbox.Helper} {
		if _, err := j.border.Namespace(role); err != nil {
			return fmt.Errorf("border: %w", err)
		}
	}
	return nil
}

func networkInWords(p sandbox.Profile, rules int) string {
	if p == sandbox.Hermetic {
		return "the job's scripts can reach nothing"
	}
	allow := "rules allow"
	if rules == 1 {
		allow = "rule allows"
	}
	return fmt.Sprintf("the job's scripts can reach what %d %s, recorded", rules, allow)
}

func (h *Host) policyFor(j *job) policy.Policy {
	repo, _ := j.payload.Repository() // accept has seen it
	deps := make([]int64, 0, len(j.payload.Dependencies))
	for _, d := range j.payload.Dependencies {
		deps = append(deps, d.ID)
	}
	pol := policy.Policy{Profile: j.profile, Git: h.cfg.Git,
		Job: policy.Job{ID: j.payload.ID, Project: j.payload.Info.ProjectID, GitLab: h.cfg.GitLab, Repository: repo, Dependencies: deps}}
	if j.profile == sandbox.Firewalled {
		pol.Allow = h.cfg.Allow
	}
	if h.cacheMode(j.profile) != cachesOff {
		pol.Caches = h.cfg.Caches.Servers
	}
	return pol
}

// open asks the authority for the attempt and starts the record.
func (h *Host) open(ctx context.Context, j *job, req executor.Request, pol policy.Policy) error {
	facts := jobFacts(j.payload)
	opened, err := h.authority.Open(ctx, Opening{
		Session: j.session, Profile: string(j.profile), Token: j.payload.Token, Job: facts,
		Runner: runnerOf(j.payload.Variables), IDToken: idTokenOf(j.payload.Variables),
	})
	if err != nil {
		err = fmt.Errorf("open the attempt with the authority: %w", err)
		if unavailable(err) {
			return &hintedError{err, "ask the runner's administrator to check `systemctl status hallmark-attestd` where the authority is"}
		}
		return err
	}
	j.opened = opened
	if j.record, err = record.Create(j.recordPath, time.Now); err != nil {
		return err
	}
	_, err = j.record.Append(record.JobOpened, record.Opened{
		Session: j.session, Attempt: opened.Attempt, Nonce: opened.Nonce, InvocationID: opened.InvocationID,
		Profile: string(j.profile), Network: network(j.profile, pol), Job: facts,
		External: external(j.payload, j.profile, h.imageName(j), opened.CommitmentKey),
		Platform: h.platform(req, j.limits),
	})
	if err != nil {
		return err
	}
	j.pump = newPump(j.record, h.authority, opened.Attempt, patience, h.cfg.Spool).start()
	return nil
}

// idTokenVariable is how a job names an ID token that is for the authority.
const idTokenVariable = "HALLMARK_ID_TOKEN"

// idTokenOf is the job's ID token for the authority, as the runner would read
// the variable: the last one of its name. Whether it is what it should be, the
// authority decides.
func idTokenOf(vars []executor.Variable) string {
	token := ""
	for _, v := range vars {
		if v.Key == idTokenVariable {
			token = v.Value
		}
	}
	return token
}

// runnerOf is the runner that GitLab gave the job to. Of several variables of
// that name the first is GitLab's: every job that a runner has gets one, before
// any that a tenant can set.
func runnerOf(vars []executor.Variable) int64 {
	for _, v := range vars {
		if v.Key == "CI_RUNNER_ID" {
			n, _ := strconv.ParseInt(v.Value, 10, 64)
			return n
		}
	}
	return 0
}

func network(p sandbox.Profile, pol policy.Policy) record.Network {
	build := "border"
	if p == sandbox.Hermetic {
		build = "none"
	}
	return record.Network{Build: build, Helper: "border", PolicyDigest: pol.Digest()}
}

func (h *Host) platform(req executor.Request, l bounds) record.Platform {
	var u unix.Utsname
	kernel := ""
	if err := unix.Uname(&u); err == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return record.Platform{
		RunnerVersion: h.cfg.RunnerVersion, ExecutorVersion: req.ExecutorVersion, SandboxdVersion: h.cfg.Version,
		ConfigDigest: h.cfg.ConfigDigest, Runtime: h.runtime.Version(), Kernel: kernel, Architecture: runtime.GOARCH,
		MemoryBytes: l.MemoryBytes, CPUMillis: int64(l.CPUs * 1000), Pids: l.Pids, Limits: l.stated(),
	}
}

// openBorder makes the job's only way out.
func (h *Host) openBorder(ctx context.Context, j *job, pol policy.Policy, out *joblog.Log) error {
	lifetime := time.Duration(j.payload.Runner.Timeout)*time.Second + deadlineSlack
	border, err := egress.Open(ctx, egress.Config{
		Policy: pol, Record: recorder{j}, GitLabRoots: h.cfg.GitLabRoots, UpstreamRoots: h.cfg.Upstream,
		SpoolDir: h.spools(), ArtifactBytes: j.limits.DiskBytes, CheckUpload: j.space.Match, Lifetime: lifetime,
		CheckDownload: func(ctx context.Context, id int64, sha256 string) (string, string, error) {
			return h.vouched(ctx, j, id, sha256)
		},
		Caches: h.objectCaches(j), CacheBytes: h.cfg.Caches.Limits.Archive,
		Secrets: masked(j.payload.Variables), OnBlock: j.blocks.note, LocalNames: j.localNames(), Log: h.log.With("session", j.session),
	})
	if err != nil {
		return fmt.Errorf("border: %w", err)
	}
	j.border = border
	return nil
}

// logger is the daemon's log with the job's name on it.
func (j *job) logger(log *slog.Logger) *slog.Logger {
	return log.With("job", j.payload.ID, "project", j.payload.Info.ProjectFullPath, "sandbox", j.session)
}
