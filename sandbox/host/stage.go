package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// maxScript bounds what the runner may hand over for one stage, in bytes.
const maxScript = 32 << 20

// run carries out one stage.
func (h *Host) run(ctx context.Context, conn *executor.Conn, out *joblog.Log, log *slog.Logger) executor.Reply {
	req := conn.Request()
	stage := sandbox.Stage(req.Stage)
	if !stage.Known() {
		return failure(&hintedError{fmt.Errorf("stage %q is not one that this version knows", req.Stage),
			"upgrade Hallmark to a version that knows this GitLab Runner"})
	}
	j, err := h.find(req.Session)
	if err != nil {
		return failure(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	log = j.logger(log).With("stage", string(stage))
	if j.gone {
		return failure(errors.New("the job was taken down"))
	}
	ctx, cancel := j.bound(ctx)
	defer cancel()
	if stage == sandbox.CleanupFiles {
		// The runner's script only removes files, and the sandbox goes as a
		// whole. What is left to do here is to end the record and say so.
		h.finish(j, log)
		j.summarize(out)
		return executor.Reply{Outcome: executor.OK}
	}
	defer j.news.attach(out)()
	exit, err := h.stage(ctx, j, stage, conn.Files(), out)
	if err != nil {
		h.note(j, stage, err, log)
		return failure(err)
	}
	if exit.Code != 0 {
		return executor.Reply{Outcome: executor.BuildFailure, ExitCode: exit.Code, Message: exitInWords(exit)}
	}
	return executor.Reply{Outcome: executor.OK}
}

// note remembers what a failed stage means for the attempt as a whole.
func (h *Host) note(j *job, stage sandbox.Stage, err error, log *slog.Logger) {
	outcome := "system_failure"
	if _, user := errors.AsType[*sandbox.UserError](err); user {
		outcome = "failed"
	}
	if _, security := errors.AsType[*sandbox.SecurityError](err); security {
		if j.security == nil {
			j.security = err
		}
		log.Error("security failure", "error", err)
	} else {
		log.Warn("stage failed", "error", err)
	}
	j.results.note(stage, outcome, 1)
}

// stage takes the steps around one script in their order.
func (h *Host) stage(ctx context.Context, j *job, stage sandbox.Stage, files executor.Files, out *joblog.Log) (sandbox.Exit, error) {
	if err := j.allows(stage); err != nil {
		return sandbox.Exit{}, err
	}
	if stage.Sealing() && !j.sealed {
		if err := j.seal(ctx); err != nil {
			return sandbox.Exit{}, err
		}
	}
	if stage.Tenant() {
		if err := h.awaitServices(ctx, j, out); err != nil {
			return sandbox.Exit{}, err
		}
	}
	script, err := readScript(files.Script)
	if err != nil {
		return sandbox.Exit{}, err
	}
	j.forget(stage)
	if stage == sandbox.RestoreCache {
		if err := h.restoreCaches(ctx, j, script, out); err != nil {
			return sandbox.Exit{}, err
		}
	}
	exit, err := h.script(ctx, j, stage, standIn(script, j.border.CA()), files.Log)
	j.reportBlocks(out)
	j.reportDownloads(out)
	j.reportHits(out)
	if err != nil {
		return exit, err
	}
	if stage == sandbox.GetSources && exit.Code == 0 {
		if err := h.verifySource(ctx, j); err != nil {
			return exit, err
		}
		return exit, h.startServices(ctx, j)
	}
	if (stage == sandbox.ArchiveCache || stage == sandbox.ArchiveCacheFail) && exit.Code == 0 {
		return exit, h.keepCaches(ctx, j, stage, script, out)
	}
	if stage.Upload() {
		return exit, h.attest(ctx, j)
	}
	return exit, nil
}

// allows refuses what no truthful record could hold.
func (j *job) allows(stage sandbox.Stage) error {
	switch {
	case j.security != nil:
		return j.security
	case j.finished:
		return fmt.Errorf("stage %s: the record is closed", stage)
	case stage.Tenant() && j.sealed:
		return fmt.Errorf("stage %s: the workspace is sealed", stage)
	case j.serving && (stage == sandbox.GetSources || stage == sandbox.ClearWorktree):
		return fmt.Errorf("stage %s: services run, and have the work tree", stage)
	case stage.Tenant() && !j.sourced:
		return fmt.Errorf("stage %s: the source was not verified", stage)
	}
	return nil
}

// forget gives up what was known of the source before a stage that changes it:
// the runner may try again what had succeeded.
func (j *job) forget(stage sandbox.Stage) {
	if stage == sandbox.GetSources || stage == sandbox.ClearWorktree {
		j.sourced = false
	}
}

// seal ends everything of the tenant's and makes the work tree unchangeable.
func (j *job) seal(ctx context.Context) error {
	if err := j.stopServices(ctx); err != nil {
		return fmt.Errorf("seal: services: %w", err)
	}
	if err := j.container(sandbox.Build).Kill(ctx); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	seal, err := j.space.Seal(ctx, j.projectDir())
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if _, err := j.record.Append(record.Sealed, seal); err != nil {
		return err
	}
	j.sealed = true
	return j.acknowledged(ctx)
}

// acknowledged waits until the authority holds the record so far. Once the work
// tree is sealed, an authority that stays silent need not fail the job.
func (j *job) acknowledged(ctx context.Context) error {
	err := j.delivered(ctx)
	if j.mayEndAlone() && unavailable(err) {
		return nil
	}
	return err
}

// mayEndAlone reports whether the job may end without the authority.
func (j *job) mayEndAlone() bool { return j.spool && j.sealed }

// delivered waits for the authority, and not for long where the job may end
// without it.
func (j *job) delivered(ctx context.Context) error {
	if j.mayEndAlone() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, latePatience)
		defer cancel()
	}
	return j.pump.acknowledged(ctx)
}

// script runs a stage's script between its two entries in the record.
func (h *Host) script(ctx context.Context, j *job, stage sandbox.Stage, script []byte, output *os.File) (sandbox.Exit, error) {
	role := stage.Role()
	stdin, err := sealedFile(script)
	if err != nil {
		return sandbox.Exit{}, err
	}
	defer func() { _ = stdin.Close() }()
	if err := letReopen(output); err != nil {
		return sandbox.Exit{}, err
	}
	digest := sha256.Sum256(script)
	_, err = j.record.Append(record.StageStarted, record.Started{
		Stage: string(stage), Role: string(role), ScriptDigest: hex.EncodeToString(digest[:]), ScriptBytes: int64(len(script)),
	})
	if err != nil {
		return sandbox.Exit{}, err
	}
	if stage.Tenant() {
		if err := j.pump.acknowledged(ctx); err != nil {
			return sandbox.Exit{}, err
		}
	}
	j.border.Begin(role, stage)
	watched, watch := h.watch(ctx, j)
	exit, runErr := j.container(role).Run(watched, h.process(j, stage, stdin, output))
	hits := watch.end(stage)
	exit, runErr = asAsked(ctx, exit, runErr)
	if runErr == nil && exit.Code == 0 && unread(stdin) {
		runErr = errUnread()
	}
	endErr := j.border.EndTo(role, j.nextPermission(role))
	ended := record.Ended{Stage: string(stage), Role: string(role), ExitCode: exit.Code, DurationMS: exit.Duration.Milliseconds()}
	ended.Outcome, ended.Detail = outcome(ctx, exit, runErr, endErr)
	j.results.note(stage, ended.Outcome, exit.Code)
	hitErr := j.recordHits(hits)
	_, recErr := j.record.Append(record.StageEnded, ended)
	if err := errors.Join(runErr, endErr, hitErr, recErr); err != nil {
		return exit, err
	}
	return exit, j.held(ctx)
}

// held waits for the authority even when the stage was canceled: what happened
// is to be acknowledged all the same.
func (j *job) held(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience+5*time.Second)
	defer cancel()
	return j.acknowledged(ctx)
}

// asAsked takes a stage that the runner had us end for no failure of ours, and
// for no success of its own: it may have never begun, or have trapped the signal.
func asAsked(ctx context.Context, exit sandbox.Exit, err error) (sandbox.Exit, error) {
	if !canceled(ctx) || !errors.Is(err, errCanceled) {
		return exit, err
	}
	if exit.Code == 0 {
		exit.Code = 128 + int(unix.SIGTERM)
	}
	return exit, nil
}

// canceled reports whether the runner asked for the end, not we ourselves.
func canceled(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errCanceled) }

func outcome(ctx context.Context, exit sandbox.Exit, runErr, endErr error) (outcome, detail string) {
	err := errors.Join(runErr, endErr)
	if _, user := errors.AsType[*sandbox.UserError](err); user {
		return "failed", err.Error()
	}
	switch {
	case canceled(ctx):
		return "canceled", ""
	case err != nil:
		return "system_failure", err.Error()
	case exit.OOM && exit.Code != 0:
		return "failed", "memory limit"
	case exit.Code != 0:
		return "failed", ""
	}
	return "success", ""
}

func (h *Host) process(j *job, stage sandbox.Stage, stdin, output *os.File) sandbox.Process {
	role := stage.Role()
	p := sandbox.Process{
		Shell: true, Env: j.env[role], Dir: buildsDir,
		Stdin: stdin, Stdout: output, Stderr: output, Grace: h.cfg.StopGrace,
	}
	if role == sandbox.Build {
		// The entrypoint starts where the image says; the script goes to the
		// work tree by itself.
		p.Args, p.User, p.Dir = j.entrypoint, j.user, j.workDir
		return p
	}
	// As under the Docker executor, so that a build which does not run as root
	// may change what the helper laid down.
	p.Args = []string{"/bin/sh", "-c", `umask 0000; exec "$@"`, "sh"}
	return p
}

// unread reports whether nobody has read of a script. The sandbox has a
// duplicate of the descriptor, and so moves its offset.
func unread(script *os.File) bool {
	at, err := script.Seek(0, io.SeekCurrent)
	return err == nil && at == 0
}

// errUnread is what becomes of a stage that ended well and did nothing: no job
// passes because its tests never ran.
func errUnread() error {
	return &sandbox.UserError{Err: errors.New("the image's entrypoint ended without running the script"),
		Hint: "an entrypoint has to exec its arguments, as in `exec \"$@\"`; `entrypoint: [\"\"]` under `image:` does without it"}
}

// exitInWords leaves the memory limit to reportHits, which has named it by then,
// and who set it.
func exitInWords(e sandbox.Exit) string {
	if e.Signal != 0 && !e.OOM {
		return fmt.Sprintf("the script's shell was ended by signal %d (%s)", e.Signal, unix.SignalName(unix.Signal(e.Signal)))
	}
	return ""
}

// verifySource compares the work tree with the payload's commit, from outside,
// while nothing runs.
func (h *Host) verifySource(ctx context.Context, j *job) error {
	git := j.payload.Git
	source, err := j.space.VerifySource(ctx, j.projectDir(), git.SHA, git.RepoObjectFormat, jobFacts(j.payload).SourceURI)
	if err != nil {
		return fmt.Errorf("verify the source: %w", err)
	}
	if _, err := j.record.Append(record.SourceVerified, source); err != nil {
		return err
	}
	if source.Outcome != "match" && !h.cfg.DeclareSource {
		return &sandbox.UserError{Err: fmt.Errorf("the work tree is not commit %s: %s", git.SHA, differenceInWords(source)),
			Hint: "the runner's admin requires verified sources: check GIT_STRATEGY, GIT_CHECKOUT and hooks of the job"}
	}
	j.sourced = true
	return nil
}

func differenceInWords(s record.Source) string {
	if len(s.Differs) == 0 {
		return joblog.Clean(strings.TrimSpace(s.Outcome + " " + s.Detail))
	}
	return joblog.Clean(strings.Join(s.Differs, ", "))
}

func readScript(f *os.File) ([]byte, error) {
	if f == nil {
		return nil, errors.New("the driver passed no script")
	}
	data, err := executor.ReadFile(f, maxScript)
	if err != nil {
		return nil, fmt.Errorf("read the script: %w", err)
	}
	return data, nil
}

// sealedFile is a file without a name that nobody can change: shells read
// scripts from it in blocks, and tenants gain nothing by opening it again.
func sealedFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("script", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("script: %w", err)
	}
	f := os.NewFile(uintptr(fd), "script")
	if _, err := io.Copy(f, bytes.NewReader(content)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("script: %w", err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("script: seal: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("script: %w", err)
	}
	return f, nil
}
