package executor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The exit codes that GitLab Runner understands. It compares with these
// numbers whatever its environment says.
const (
	exitOK            = 0
	exitBuildFailure  = 1
	exitSystemFailure = 2
)

// What config answers. The paths are those inside the containers: each job has
// mounts of its own there.
const (
	driverName = "hallmark"
	buildsDir  = "/builds"
	cacheDir   = "/cache"
	shellName  = "bash"

	sessionVariable = "HALLMARK_SESSION"
)

const (
	defaultSocket  = "/run/hallmark/sandboxd.sock"
	defaultProfile = "hermetic" // what allows least
)

// cleanupTimeout bounds how long cleanup waits for the daemon, which ends what
// is left in any case.
const cleanupTimeout = 2 * time.Minute

const usage = `usage: hallmark-executor [-socket PATH] [-profile NAME] CALL

GitLab Runner starts this program; see [runners.custom] of its config.toml.

calls:
  config              print what GitLab Runner asks of a custom executor
  prepare             make the job's sandbox
  run SCRIPT STAGE    run one stage in it
  cleanup             end it

flags:
  -socket PATH   socket of the sandbox daemon (default ` + defaultSocket + `)
  -profile NAME  security mode: hermetic or firewalled (default ` + defaultProfile + `)
  -version       print the version
`

// A driverError is a failure with a hint for the reader. It is always the
// system's fault: the job's faults come from the daemon, as a [Reply].
type driverError struct {
	err  error
	hint string
}

func (e *driverError) Error() string { return e.err.Error() }
func (e *driverError) Unwrap() error { return e.err }

// driver is one call of the runner.
type driver struct {
	socket, profile string
	env             environment
	talk            talk
	stdout          *os.File
}

// Main is the driver program. It returns the exit code.
func Main(args, env []string, stdin, stdout, stderr *os.File) int {
	flags := flag.NewFlagSet("hallmark-executor", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	socket := flags.String("socket", defaultSocket, "")
	profile := flags.String("profile", defaultProfile, "")
	version := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err != nil:
		return usageError(stderr, err.Error())
	case *version:
		fmt.Fprintln(stdout, "hallmark-executor", Version)
		return exitOK
	case flags.NArg() == 0:
		return usageError(stderr, "no call given")
	}
	// Whose output the runner shows where: config's stdout is the answer, and
	// cleanup's is thrown away. Prepare and run have one stream, since the
	// runner mixes two of them in the middle of lines.
	out := stderr
	if call := Call(flags.Arg(0)); call == CallPrepare || call == CallRun {
		out = stdout
	}
	d := &driver{*socket, *profile, environment(env), talk{out}, stdout}
	return guard(d.talk, func() int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		code, ok := d.call(ctx, flags.Args())
		if !ok {
			return usageError(stderr, fmt.Sprintf("cannot do %q", strings.Join(flags.Args(), " ")))
		}
		return code
	})
}

// call does what the runner asks; ok is false if that is no call.
func (d *driver) call(ctx context.Context, args []string) (code int, ok bool) {
	switch {
	case args[0] == "config" && len(args) == 1:
		return d.config(), true
	case args[0] == "prepare" && len(args) == 1:
		return d.stage(ctx, CallPrepare, "", ""), true
	case args[0] == "run" && len(args) == 3:
		return d.stage(ctx, CallRun, args[1], args[2]), true
	case args[0] == "cleanup" && len(args) == 1:
		return d.cleanup(ctx), true
	}
	return 0, false
}

// guard turns a panic into a system failure. Left alone it would end in the
// same exit code, but with goroutines' stacks in the job log.
func guard(t talk, do func() int) (code int) {
	defer func() {
		if p := recover(); p != nil {
			t.error(fmt.Errorf("internal error: %v", p))
			t.hint("this is a fault of hallmark-executor " + Version + ": please report it with the line above")
			code = exitSystemFailure
		}
	}()
	return do()
}

func usageError(w io.Writer, problem string) int {
	talk{w}.error(errors.New(problem))
	io.WriteString(w, usage)
	return exitSystemFailure
}

// fail reports an error of this side: the system's.
func (d *driver) fail(err error) int {
	d.talk.error(err)
	if e, ok := errors.AsType[*driverError](err); ok && e.hint != "" {
		d.talk.hint(e.hint)
	}
	return exitSystemFailure
}

// configAnswer is what config prints.
type configAnswer struct {
	Driver            driverInfo        `json:"driver"`
	BuildsDir         string            `json:"builds_dir"`
	CacheDir          string            `json:"cache_dir"`
	BuildsDirIsShared bool              `json:"builds_dir_is_shared"`
	Shell             string            `json:"shell"`
	JobEnv            map[string]string `json:"job_env"`
}

type driverInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// config answers without asking the daemon: when the job's variables are
// beyond what a process may be given, no later call ever comes, and whatever
// was allocated here would stay. It reads the payload all the same, so that one
// that nobody can use is refused before anything is made for it.
func (d *driver) config() int {
	if err := d.env.checkRunner(); err != nil {
		return d.fail(err)
	}
	if _, err := d.env.job(); err != nil {
		return d.fail(err)
	}
	answer, err := json.Marshal(configAnswer{
		Driver:    driverInfo{driverName, Version},
		BuildsDir: buildsDir,
		CacheDir:  cacheDir,
		Shell:     shellName,
		JobEnv:    map[string]string{sessionVariable: newSession()},
	})
	if err != nil {
		return d.fail(err)
	}
	if _, err := d.stdout.Write(append(answer, '\n')); err != nil {
		return d.fail(fmt.Errorf("write the answer: %w", err))
	}
	return exitOK
}

// newSession returns a handle that no job can guess.
func newSession() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// stage carries out prepare, or run for one stage.
func (d *driver) stage(ctx context.Context, call Call, script, stage string) int {
	if err := d.env.checkRunner(); err != nil {
		return d.fail(err)
	}
	if !ValidSession(d.env.get(sessionVariable)) {
		return d.fail(&driverError{
			fmt.Errorf("environment: %s is missing or malformed", sessionVariable),
			"set config_exec in [runners.custom] of the runner's config.toml: `hallmark runner config` prints the section",
		})
	}
	// The runner never clears the file, and would take the status of an earlier
	// stage for this one's.
	exitCodeFile := d.env.get(exitCodeFileVariable)
	if err := os.Remove(exitCodeFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.fail(fmt.Errorf("clear BUILD_EXIT_CODE_FILE: %w", err))
	}
	files, err := d.open(call, script)
	if err != nil {
		return d.fail(err)
	}
	defer files.close()
	ctx, stop := untilHangup(ctx, d.stdout)
	defer stop()
	reply, err := Send(ctx, d.socket, d.request(call, stage), files)
	if err != nil {
		return d.fail(d.explain(err))
	}
	d.tell(reply)
	switch reply.Outcome {
	case OK:
		return exitOK
	case BuildFailure:
		if err := writeExitCode(exitCodeFile, reply.ExitCode); err != nil {
			return d.fail(err)
		}
		return exitBuildFailure
	}
	return exitSystemFailure
}

// cleanup asks the daemon to end the sandbox. There may be none: the runner
// also calls when config or prepare failed, and the daemon ends what it is not
// asked to.
func (d *driver) cleanup(ctx context.Context) int {
	if d.env.get(sessionVariable) == "" {
		return exitOK // config did not get so far
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	reply, err := Send(ctx, d.socket, d.request(CallCleanup, ""), Files{Log: d.stdout})
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		d.fail(d.explain(err))
		return exitOK // nothing runs without the daemon, and it sweeps when it starts
	}
	if err != nil {
		return d.fail(d.explain(err))
	}
	d.tell(reply)
	if reply.Outcome != OK {
		return exitSystemFailure
	}
	return exitOK
}

func (d *driver) request(call Call, stage string) Request {
	tempDir := ""
	if p := d.env.get(jobResponseVariable); filepath.IsAbs(p) {
		tempDir = filepath.Dir(filepath.Clean(p))
	}
	return Request{
		Version:         WireVersion,
		Call:            call,
		Session:         d.env.get(sessionVariable),
		Profile:         d.profile,
		Stage:           stage,
		TempDir:         tempDir,
		ExecutorVersion: Version,
	}
}

func (d *driver) open(call Call, script string) (Files, error) {
	files := Files{Log: d.stdout}
	var err error
	if files.Payload, err = openRegular(d.env.get(jobResponseVariable)); err != nil {
		return Files{}, fmt.Errorf("job response: %w", err)
	}
	if call != CallRun {
		return files, nil
	}
	if files.Script, err = openRegular(script); err != nil {
		files.close()
		return Files{}, fmt.Errorf("stage script: %w", err)
	}
	return files, nil
}

// close leaves the log open: it is the process's own output.
func (f Files) close() {
	if f.Payload != nil {
		f.Payload.Close()
	}
	if f.Script != nil {
		f.Script.Close()
	}
}

// openRegular opens a regular file, without waiting for what is none.
func openRegular(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("path %q is not absolute", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tell prints what the daemon has to say.
func (d *driver) tell(r Reply) {
	switch {
	case r.Message == "":
	case r.Outcome == OK:
		d.talk.line(r.Message)
	default:
		d.talk.error(errors.New(r.Message))
	}
	if r.Hint != "" {
		d.talk.hint(r.Hint)
	}
}

// explain adds what can be done about a daemon that cannot be reached.
func (d *driver) explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, errNoReply):
		hint = "ask the runner's administrator for `journalctl -u hallmark-sandboxd`"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		hint = "the runner's user may not use the socket: ask the runner's administrator to check socket_user in sandboxd.toml"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		hint = "ask the runner's administrator to check `systemctl status hallmark-sandboxd`"
	}
	return &driverError{err, hint}
}

// writeExitCode leaves the script's status for the runner. Without the file it
// reports 1, which may be a status that the job allows, so not being able to
// write it is a failure of ours. The job ends with the machine: no sync.
func writeExitCode(path string, code int) error {
	if code == 0 {
		return nil // the failure is not a script's
	}
	temp := path + ".new"
	err := os.WriteFile(temp, []byte(strconv.Itoa(code)+"\n"), 0o600)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("write BUILD_EXIT_CODE_FILE: %w", err)
	}
	return nil
}

// environment is what the runner passed. Only names that the runner sets itself
// are ever looked up; those of the job all start with CUSTOM_ENV_.
type environment []string

const (
	buildFailureVariable  = "BUILD_FAILURE_EXIT_CODE"
	systemFailureVariable = "SYSTEM_FAILURE_EXIT_CODE"
	exitCodeFileVariable  = "BUILD_EXIT_CODE_FILE"
	jobResponseVariable   = "JOB_RESPONSE_FILE"
)

// get returns the last value of a name, as the runner means it.
func (e environment) get(name string) string {
	value := ""
	for _, entry := range e {
		if n, v, ok := strings.Cut(entry, "="); ok && n == name {
			value = v
		}
	}
	return value
}

// checkRunner refuses runners whose contract is not the one we know.
func (e environment) checkRunner() error {
	for _, code := range []struct {
		name string
		want int
	}{{buildFailureVariable, exitBuildFailure}, {systemFailureVariable, exitSystemFailure}} {
		if got := e.get(code.name); got != strconv.Itoa(code.want) {
			return &driverError{
				fmt.Errorf("environment: %s is %q, want %d", code.name, got, code.want),
				"this program is started by GitLab Runner, from [runners.custom] in its config.toml",
			}
		}
	}
	if e.get(jobResponseVariable) == "" {
		return &driverError{errors.New("environment: JOB_RESPONSE_FILE is not set"), "update GitLab Runner: before 14.1 it does not tell a driver what the job is"}
	}
	switch p := e.get(exitCodeFileVariable); {
	case p == "":
		return &driverError{errors.New("environment: BUILD_EXIT_CODE_FILE is not set"), "update GitLab Runner: this one would report every failure as exit code 1"}
	case !filepath.IsAbs(p):
		return &driverError{fmt.Errorf("environment: BUILD_EXIT_CODE_FILE: path %q is not absolute", p), ""}
	}
	return nil
}

// job reads the payload.
func (e environment) job() (*Job, error) {
	f, err := openRegular(e.get(jobResponseVariable))
	if err != nil {
		return nil, fmt.Errorf("job response: %w", err)
	}
	defer f.Close()
	data, err := ReadFile(f, MaxPayload)
	if err != nil {
		return nil, fmt.Errorf("job response: %w", err)
	}
	return ParseJob(data)
}
