package host

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/disk"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/image/auth"
	"hallmark.build/sandbox/record"
	"hallmark.build/sandbox/workspace"
)

// A job is one attempt on this host, from prepare to teardown.
type job struct {
	session string
	profile sandbox.Profile
	payload *executor.Job
	// tempDir is the runner's, gone when the runner let the job go. It is empty
	// where this daemon cannot see it, for instance under PrivateTmp.
	tempDir string
	runner  *process
	started time.Time

	// stop ends what the job is doing at the moment: cleanup does not wait
	// for a stage that the runner has given up.
	stop context.CancelFunc
	life context.Context

	reaped atomic.Bool // the reaper is at it

	mu         sync.Mutex // held by the one call that is at work
	opened     Opened
	ids        sandbox.IDs
	dir        string // workspace and container files
	record     *record.Log
	recordPath string
	pump       *pump
	limits     bounds
	hits       []record.Hit // that the log does not have yet
	disk       *disk.Disk   // nil where nothing bounds it
	space      *workspace.Workspace
	border     *egress.Border
	containers containers
	env        map[sandbox.Role][]string
	entrypoint []string // of the build image
	user       string   // of the build image or the job
	workDir    string   // of the build image; may be empty
	holding    sync.Mutex
	holds      []func()            // release the images that the job runs on
	ring       map[bool]*auth.Ring // logins for images: the host's own by true
	services   []*service
	serving    bool // services were started, and not ended
	awaited    bool // until they listen
	news       serviceNews
	sealed     bool
	sourced    bool // source verified, or declared
	results    results
	security   error // the first security failure: the attempt is lost
	finished   bool
	closed     Closed // what the authority made of it
	spool      bool   // the job may end although the authority does not answer
	late       error  // why the record is to be closed late
	gone       bool
	blocks     blockLog
	downloads  downloadLog
	inputs     inputCount
	caches     jobCaches
}

// A container is one that package containerd made; see there for what its
// methods promise.
type container interface {
	Run(ctx context.Context, p sandbox.Process) (sandbox.Exit, error)
	Kill(ctx context.Context) error
	Delete(ctx context.Context) error
	Hits() []sandbox.Hit
}

// containers are the attempt's, by role.
type containers struct {
	mu     sync.Mutex
	byRole map[sandbox.Role]container
}

func (j *job) keep(role sandbox.Role, c container) {
	j.containers.mu.Lock()
	defer j.containers.mu.Unlock()
	if j.containers.byRole == nil {
		j.containers.byRole = map[sandbox.Role]container{}
	}
	j.containers.byRole[role] = c
}

func (j *job) container(role sandbox.Role) container {
	j.containers.mu.Lock()
	defer j.containers.mu.Unlock()
	return j.containers.byRole[role]
}

// all are the containers that there are now.
func (c *containers) all() map[sandbox.Role]container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.byRole)
}

// A result is what the attempt came to so far.
type result struct {
	outcome string // as in [record.Closing]
	code    int
}

// results are the outcomes of the stages, in the order of their first run. A
// stage that the runner tried again counts as it ended last.
type results struct {
	stages []sandbox.Stage
	last   map[sandbox.Stage]result
}

func (r *results) note(stage sandbox.Stage, outcome string, code int) {
	if r.last == nil {
		r.last = map[sandbox.Stage]result{}
	}
	if _, again := r.last[stage]; !again {
		r.stages = append(r.stages, stage)
	}
	r.last[stage] = result{outcome, code}
}

// sum is the first stage's outcome that is no success. How after_script ends
// counts where the runner says so, by the stage that it goes on with: it knows
// AFTER_SCRIPT_IGNORE_ERRORS, and why a script was stopped. A failure of the sandbox comes before all others: what
// the authority signs of a script that failed, it never signs of a host that did.
func (r *results) sum() result {
	sum := result{outcome: "success"}
	for _, stage := range r.stages {
		res := r.last[stage]
		switch {
		case res.outcome == "system_failure":
			return res
		case sum.outcome != "success", stage == sandbox.AfterScript && !r.failed():
		default:
			sum = res
		}
	}
	return sum
}

// failed reports whether the runner takes the job for failed or canceled.
func (r *results) failed() bool {
	return slices.Contains(r.stages, sandbox.UploadFailure) || slices.Contains(r.stages, sandbox.ArchiveCacheFail)
}

// recorder is the job's record as the border sees it: every entry passes the
// counts that the summary is made of.
type recorder struct{ j *job }

func (r recorder) Append(kind record.Kind, data any) (record.Entry, error) {
	e, err := r.j.record.Append(kind, data)
	if err == nil {
		r.j.inputs.count(data)
	}
	return e, err
}

// inputCount counts what crossed the border.
type inputCount struct {
	mu      sync.Mutex
	fetched int
	outputs int
	names   []string
}

func (c *inputCount) count(data any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch d := data.(type) {
	case record.Fetch:
		c.fetched++
	case record.Upload:
		if d.Status >= 200 && d.Status < 300 {
			c.outputs++
			c.names = append(c.names, d.FileName+" sha256:"+d.SHA256)
		}
	}
}

func (c *inputCount) numbers() (fetched, outputs int, names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fetched, c.outputs, append([]string(nil), c.names...)
}

// projectDir is where the runner puts the work tree, in the containers.
func (j *job) projectDir() string { return j.payload.ProjectDir(buildsDir) }

const buildsDir = "/builds"

// abandoned reports why the job can be taken down although the runner did not
// ask for it, or nil.
func (j *job) abandoned(now time.Time) error {
	limit := time.Duration(j.payload.Runner.Timeout)*time.Second + deadlineSlack
	switch {
	case j.runner.gone():
		return errors.New("its gitlab-runner is gone")
	case j.tempDir != "" && !exists(j.tempDir):
		return errors.New("its gitlab-runner dropped the job")
	case now.Sub(j.started) > limit:
		return errors.New("it outlived its time limit")
	}
	return nil
}

func (h *Host) jobDir(session string) string { return filepath.Join(h.workspaces(), session) }
