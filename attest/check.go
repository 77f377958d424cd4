package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"hallmark.build/sandbox/record"
)

// Profiles of the sandbox, as far as statements speak of them.
const (
	hermetic   = "hermetic"
	firewalled = "firewalled"
)

// KnownProfile reports whether statements can be made for a profile.
func KnownProfile(name string) bool { return name == hermetic || name == firewalled }

// Roles of containers. Services share the build container's network.
const (
	roleBuild   = "build"
	roleHelper  = "helper"
	roleService = "service"
)

// stageServices is the time in which services run and no tenant stage does.
const stageServices = "services"

// Words of a sandbox's network.
const (
	networkNone   = "none"
	networkBorder = "border"
)

const maxJSONInteger = 1<<53 - 1 // what every JSON reader keeps exactly

// TenantStage reports whether the tenant wrote the stage's script. The
// authority reads stage names by its own rule, not by the host's code.
func TenantStage(stage string) bool {
	return stage == "build_script" || stage == "after_script" || strings.HasPrefix(stage, "step_")
}

func uploadStage(stage string) bool {
	return stage == "upload_artifacts_on_success" || stage == "upload_artifacts_on_failure"
}

func sealingStage(stage string) bool {
	return stage == "archive_cache" || stage == "archive_cache_on_failure" || uploadStage(stage)
}

// sourceStage reports whether the stage may rewrite the work tree from the
// repository.
func sourceStage(stage string) bool { return stage == "get_sources" || stage == "clear_worktree" }

func stageRole(stage string) string {
	if TenantStage(stage) {
		return roleBuild
	}
	return roleHelper
}

// A story is what a record tells, once it is known to hang together.
type story struct {
	opened   record.Opened
	images   []record.Image
	source   *record.Source // the last comparison; nil if there was none
	scripts  []record.Started
	stages   []record.Ended
	fetches  []fetch
	blocks   []block
	uploads  []upload
	hits     []hit
	caches   []cache
	closing  record.Closing
	started  time.Time
	finished time.Time
	digest   string // SHA-256 of the whole record
	head     record.Head
}

type fetch struct {
	record.Fetch
	entry record.Entry
	url   *url.URL
}

type block struct {
	record.Block
	entry record.Entry
}

type hit struct {
	record.Hit
	entry record.Entry
}

type upload struct {
	record.Upload
	seq int64
}

// A checker walks through a record. Its fields say how far the job has come.
type checker struct {
	story
	open       *record.Started // the stage that is running
	image      map[string]record.Image
	services   int             // how many of the job's services the images so far have passed
	serving    bool            // there is a service
	names      map[string]bool // of services
	ran        map[string]bool // roles in which a stage has started
	tenant     bool            // tenant code has run
	verified   bool            // the work tree was compared and not fetched again
	sealed     bool
	members    map[string][]record.UploadEntry // by their artifact's digest
	scriptFail string                          // the tenant stage that failed, after_script apart
}

// check reads a whole record and refuses what does not fit. Order matters
// where a rule speaks of order: each rule is a line of the method for its kind.
func check(entries []record.Entry) (*story, error) {
	c := &checker{image: map[string]record.Image{}, names: map[string]bool{}, ran: map[string]bool{}, members: map[string][]record.UploadEntry{}}
	prev := record.Genesis
	for i, e := range entries {
		if e.Seq != int64(i) || e.Prev != prev {
			return nil, refuse(e, ChainBroken, "does not follow the entry before it")
		}
		if (e.Kind == record.JobOpened) != (i == 0) {
			return nil, refuse(e, NotOpened, "%s stands first and only there", record.JobOpened)
		}
		if r := c.add(e); r != nil {
			return nil, r
		}
		prev = e.Hash
	}
	if r := c.end(entries); r != nil {
		return nil, r
	}
	return &c.story, nil
}

func refuse(e record.Entry, reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Entry: e.Seq, Detail: fmt.Sprintf(format, args...)}
}

func (c *checker) add(e record.Entry) *Refusal {
	switch e.Kind {
	case record.JobOpened:
		return c.addOpened(e)
	case record.ImageResolved:
		return c.addImage(e)
	case record.StageStarted:
		return c.addStarted(e)
	case record.StageEnded:
		return c.addEnded(e)
	case record.SourceVerified:
		return c.addSource(e)
	case record.Fetched:
		return c.addFetch(e)
	case record.Blocked:
		return c.addBlock(e)
	case record.Sealed:
		return c.addSeal(e)
	case record.Matched:
		return c.addMembers(e)
	case record.Uploaded:
		return c.addUpload(e)
	case record.LimitHit:
		return c.addHit(e)
	case record.CacheUsed:
		return c.addCache(e)
	case record.Violated:
		return c.addViolation(e)
	case record.Closed:
		return c.addClosing(e)
	}
	return refuse(e, Malformed, "unknown kind %q", e.Kind)
}

// decode reads an entry's data, or says what is wrong with it. Package record
// has checked the line, names in data to the letter, when it made the entry; doing
// it again, as record.Entry's own Decode would, takes several times as long as
// all the rest.
func decode(e record.Entry, v any) *Refusal {
	dec := json.NewDecoder(bytes.NewReader(e.Data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return refuse(e, Malformed, "%s: %v", e.Kind, err)
	}
	return nil
}

func (c *checker) addOpened(e record.Entry) *Refusal {
	o := &c.opened
	if r := decode(e, o); r != nil {
		return r
	}
	c.started = e.Time
	if r := checkNetwork(e, o); r != nil {
		return r
	}
	if r := checkFacts(e, o); r != nil {
		return r
	}
	return checkNumbers(e, o)
}

func checkNetwork(e record.Entry, o *record.Opened) *Refusal {
	want := map[string]string{hermetic: networkNone, firewalled: networkBorder}[o.Profile]
	switch {
	case want == "":
		return refuse(e, ProfileUnknown, "profile %q", o.Profile)
	case o.Network.Build != want:
		return refuse(e, NetworkContradiction, "profile %s with network %q of the build container", o.Profile, o.Network.Build)
	case o.Network.Helper != networkBorder:
		return refuse(e, NetworkContradiction, "network %q of the helper container", o.Network.Helper)
	case !isSHA256(o.Network.PolicyDigest):
		return refuse(e, Malformed, "policy digest %q", o.Network.PolicyDigest)
	}
	return nil
}

// fullRef is a ref as git knows it. GitLab gives the names of tags and branches,
// and whole refs of its own where a pipeline is about neither. A branch can be
// called "refs/heads/main": it is not main.
func fullRef(j record.Job) string {
	switch {
	case j.RefType == "tag":
		return "refs/tags/" + j.Ref
	case strings.HasPrefix(j.Ref, "refs/heads/"), strings.HasPrefix(j.Ref, "refs/tags/"):
	case strings.HasPrefix(j.Ref, "refs/"):
		return j.Ref
	}
	return "refs/heads/" + j.Ref
}

func checkFacts(e record.Entry, o *record.Opened) *Refusal {
	x, j := &o.External, &o.Job
	for _, f := range []struct{ name, tenant, gitlab string }{
		{"source", x.Source, j.SourceURI},
		{"ref", x.Ref, fullRef(*j)},
		{"project", x.Project, j.Project},
		{"jobName", x.JobName, j.Name},
		{"jobStage", x.JobStage, j.Stage},
		{"profile", x.Profile, o.Profile},
	} {
		if f.tenant != f.gitlab {
			return refuse(e, FactsContradiction, "%s is %q in the parameters, %q in the job's facts", f.name, f.tenant, f.gitlab)
		}
	}
	if x.Source == "" || x.Project == "" || o.InvocationID == "" {
		return refuse(e, Malformed, "source, project or invocation id is empty")
	}
	if !isHex(j.SHA, 40) && !isHex(j.SHA, 64) {
		return refuse(e, Malformed, "commit %q", j.SHA)
	}
	if j.RefType != "branch" && j.RefType != "tag" {
		return refuse(e, Malformed, "ref type %q", j.RefType)
	}
	if _, r := address(e, x.Source); r != nil {
		return r
	}
	return nil
}

func checkNumbers(e record.Entry, o *record.Opened) *Refusal {
	numbers := []int64{
		o.Job.ID, o.Job.ProjectID, o.Job.PipelineID, o.Job.UserID, o.Job.TimeoutSec,
		o.Platform.MemoryBytes, o.Platform.CPUMillis, o.Platform.Pids,
	}
	numbers = append(numbers, limitNumbers(o.Platform.Limits)...)
	for _, d := range o.External.Dependencies {
		numbers = append(numbers, d.ID)
	}
	for _, s := range o.External.Steps {
		numbers = append(numbers, s.TimeoutSec)
	}
	for _, s := range o.External.Hooks {
		numbers = append(numbers, s.TimeoutSec)
	}
	for _, n := range numbers {
		if n < 0 || n > maxJSONInteger {
			return refuse(e, NumberTooLarge, "%d is not within 0 and 2^53-1", n)
		}
	}
	return nil
}

// address parses a URL that will be published.
func address(e record.Entry, text string) (*url.URL, *Refusal) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, refuse(e, Malformed, "address is not an absolute http or https URL")
	case u.User != nil:
		return nil, refuse(e, CredentialsInAddress, "address at host %q holds credentials", u.Host)
	}
	return u, nil
}

func (c *checker) addImage(e record.Entry) *Refusal {
	var im record.Image
	if r := decode(e, &im); r != nil {
		return r
	}
	before, again := c.image[im.Role]
	switch {
	case im.Role != roleBuild && im.Role != roleHelper && im.Role != roleService:
		return refuse(e, Malformed, "image of role %q", im.Role)
	case !isDigest(im.Manifest) || !isDigest(im.Config) || im.Index != "" && !isDigest(im.Index):
		return refuse(e, Malformed, "image %q: digest is not sha256", im.Name)
	case !strings.HasSuffix(im.Reference, "@"+im.Manifest) || im.Reference == "@"+im.Manifest:
		return refuse(e, Malformed, "image %q: reference does not end in its manifest's digest", im.Name)
	case im.Role == roleService:
		return c.addService(e, im)
	case len(im.Names) > 0:
		return refuse(e, Malformed, "image of role %s has names", im.Role)
	case again && !reflect.DeepEqual(before, im):
		return refuse(e, ImageChanged, "role %s has two images", im.Role)
	case c.ran[im.Role]:
		return refuse(e, ImageChanged, "role %s already runs", im.Role)
	case again:
		return nil
	}
	c.image[im.Role] = im
	c.images = append(c.images, im)
	return nil
}

// addService takes a service's image: one that the job asked for, in the job's
// order, under names of its own, and before the build container runs anything.
// A service all of whose names are taken is not run, so some may be missing.
func (c *checker) addService(e record.Entry, im record.Image) *Refusal {
	asked := c.opened.External.Services
	for c.services < len(asked) && asked[c.services].Name != im.Name {
		c.services++
	}
	switch {
	case c.services == len(asked):
		return refuse(e, ServiceUnasked, "service %q is not the job's, or not in its order", im.Name)
	case c.ran[roleBuild] || c.tenant:
		return refuse(e, ImageChanged, "service %q comes after tenant code ran", im.Name)
	case len(im.Names) == 0:
		return refuse(e, Malformed, "service %q has no name", im.Name)
	}
	for _, name := range im.Names {
		if name == "" || c.names[name] {
			return refuse(e, Malformed, "name %q of service %q is empty or another's", name, im.Name)
		}
		c.names[name] = true
	}
	c.services++
	c.serving = true
	c.images = append(c.images, im)
	return nil
}

func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && isSHA256(digits)
}

func (c *checker) addStarted(e record.Entry) *Refusal {
	var s record.Started
	if r := decode(e, &s); r != nil {
		return r
	}
	tenant := TenantStage(s.Stage)
	switch {
	case s.Stage == "" || s.Stage == stageServices || !isSHA256(s.ScriptDigest) || s.ScriptBytes < 0:
		return refuse(e, Malformed, "stage %q: script digest or size", s.Stage)
	case c.open != nil:
		return refuse(e, StagesOverlap, "%s starts within %s", s.Stage, c.open.Stage)
	case s.Role != stageRole(s.Stage):
		return refuse(e, StageRole, "%s in container %q", s.Stage, s.Role)
	case c.image[s.Role].Manifest == "":
		return refuse(e, ImageMissing, "%s starts, but no image was resolved for container %s", s.Stage, s.Role)
	case tenant && !c.verified:
		return refuse(e, SourceUnverified, "%s starts before the work tree was compared", s.Stage)
	case tenant && c.sealed:
		return refuse(e, TenantAfterSeal, "%s starts after the seal", s.Stage)
	case sourceStage(s.Stage) && c.tenant:
		return refuse(e, SourceAfterTenant, "%s starts after tenant code ran", s.Stage)
	case sealingStage(s.Stage) && !c.sealed:
		return refuse(e, NotSealed, "%s starts before the seal", s.Stage)
	}
	if sourceStage(s.Stage) {
		c.verified = false
		c.source = nil
	}
	c.tenant = c.tenant || tenant
	c.ran[s.Role] = true
	c.open = &s
	c.scripts = append(c.scripts, s)
	return nil
}

func (c *checker) addEnded(e record.Entry) *Refusal {
	var s record.Ended
	if r := decode(e, &s); r != nil {
		return r
	}
	switch {
	case c.open == nil || c.open.Stage != s.Stage || c.open.Role != s.Role:
		return refuse(e, StageNeverStarted, "%s ends in container %q, but was not running there", s.Stage, s.Role)
	case s.DurationMS < 0 || s.DurationMS > maxJSONInteger || s.ExitCode < math.MinInt32 || s.ExitCode > math.MaxInt32:
		return refuse(e, NumberTooLarge, "%s: duration or exit code", s.Stage)
	}
	switch s.Outcome {
	case "success", "failed", "canceled", "system_failure":
	default:
		return refuse(e, OutcomeUnknown, "%s ended as %q", s.Stage, s.Outcome)
	}
	if TenantStage(s.Stage) && s.Stage != "after_script" && s.Outcome != "success" && !c.allowedToFail(s.Stage) {
		c.scriptFail = s.Stage
	}
	c.open = nil
	c.stages = append(c.stages, s)
	return nil
}

// allowedToFail reports whether the payload lets the job go on after the stage
// failed.
func (c *checker) allowedToFail(stage string) bool {
	name := strings.TrimPrefix(stage, "step_")
	if stage == "build_script" {
		name = "script"
	}
	for _, s := range c.opened.External.Steps {
		if strings.EqualFold(s.Name, name) {
			return s.AllowFailure
		}
	}
	return false
}

func (c *checker) addSource(e record.Entry) *Refusal {
	var s record.Source
	if r := decode(e, &s); r != nil {
		return r
	}
	digits := map[string]int{"sha1": 40, "sha256": 64}[s.Format]
	switch {
	case c.open != nil:
		return refuse(e, SourceInFlux, "the work tree was compared while %s ran", c.open.Stage)
	case c.tenant:
		return refuse(e, SourceAfterTenant, "the work tree was compared after tenant code ran")
	case s.Commit != c.opened.Job.SHA:
		return refuse(e, SourceOther, "the work tree was compared with %q, not with the job's commit", s.Commit)
	case digits == 0 || !isHex(s.Commit, digits):
		return refuse(e, Malformed, "commit and object format %q disagree", s.Format)
	case s.Files < 0 || s.Files > maxJSONInteger || s.Bytes < 0 || s.Bytes > maxJSONInteger:
		return refuse(e, NumberTooLarge, "files or bytes of the work tree")
	case s.Tree != "" && !isHex(s.Tree, digits) || s.Found != "" && !isHex(s.Found, digits):
		return refuse(e, Malformed, "tree is not %s", s.Format)
	case s.Converted < 0 || s.Converted > s.Files:
		return refuse(e, Malformed, "number of converted files")
	}
	if r := checkSubmodules(e, s, digits); r != nil {
		return r
	}
	switch {
	case s.Outcome == sourceMatch && s.Tree != "" && (s.Found == "" || s.Found == s.Tree) && len(s.Differs) == 0:
	case s.Outcome == sourceMismatch, s.Outcome == sourceAbsent:
	default:
		return refuse(e, OutcomeUnknown, "work tree compared as %q", s.Outcome)
	}
	c.verified = true
	c.source = &s
	return nil
}

func checkSubmodules(e record.Entry, s record.Source, digits int) *Refusal {
	before := ""
	for _, m := range s.Submodules {
		if m.Path <= before || !isHex(m.Commit, digits) || !isHex(m.Tree, digits) {
			return refuse(e, Malformed, "submodule %q: path, commit or tree", m.Path)
		}
		if m.URL != "" {
			if _, r := address(e, m.URL); r != nil {
				return r
			}
		}
		before = m.Path
	}
	return nil
}

// What the comparison of work tree and commit may find.
const (
	sourceMatch    = "match"
	sourceMismatch = "mismatch"
	sourceAbsent   = "absent"
)

func (c *checker) addFetch(e record.Entry) *Refusal {
	var f record.Fetch
	if r := decode(e, &f); r != nil {
		return r
	}
	u, r := address(e, f.URL)
	if r != nil {
		return r
	}
	switch {
	case !c.running(f.Stage, f.Role):
		return refuse(e, FetchOutsideStage, "an exchange of %q in container %q, which was not running", f.Stage, f.Role)
	case f.Role == roleBuild && c.opened.Network.Build == networkNone:
		return refuse(e, FetchWithoutNetwork, "an exchange of %s, whose network has no way out", f.Stage)
	case f.Method == "" || !isStatus(f.Status) && (f.Status != 0 || f.Incomplete == "") || f.Bytes < 0 || f.Bytes > maxJSONInteger:
		return refuse(e, Malformed, "method, status or size of an exchange")
	case !isSHA256(f.SHA256) || f.RequestSHA256 != "" && !isSHA256(f.RequestSHA256):
		return refuse(e, Malformed, "digest of an exchange")
	case f.Git != nil && slices.ContainsFunc(f.Git.Wants, func(id string) bool { return !isHex(id, 40) && !isHex(id, 64) }):
		return refuse(e, Malformed, "objects that git was asked for")
	}
	for _, via := range f.Redirects {
		if _, r := address(e, via); r != nil {
			return r
		}
	}
	if r := c.checkOrigin(e, f); r != nil {
		return r
	}
	if r := c.checkCacheFetch(e, fetch{f, e, u}); r != nil {
		return r
	}
	// What serves is tenant code: a work tree that is compared from now on says
	// nothing.
	c.tenant = c.tenant || f.Stage == stageServices
	c.fetches = append(c.fetches, fetch{f, e, u})
	return nil
}

// running reports whether something of a role can have made an exchange in a
// stage: the stage that is open, or a service, between the comparison of the
// work tree and the seal.
func (c *checker) running(stage, role string) bool {
	if stage == stageServices {
		return role == roleBuild && c.serving && c.verified && !c.sealed
	}
	return c.open != nil && c.open.Stage == stage && c.open.Role == role
}

func isStatus(code int) bool { return code >= 100 && code <= 599 }

func (c *checker) addBlock(e record.Entry) *Refusal {
	var b record.Block
	if r := decode(e, &b); r != nil {
		return r
	}
	if b.Count < 0 || b.Count > maxJSONInteger/record.MaxEntries {
		return refuse(e, NumberTooLarge, "count of a refusal")
	}
	c.blocks = append(c.blocks, block{b, e})
	return nil
}

func (c *checker) addSeal(e record.Entry) *Refusal {
	var s record.Seal
	if r := decode(e, &s); r != nil {
		return r
	}
	switch {
	case !strings.HasPrefix(s.Directory, "/") || path.Clean(s.Directory) != s.Directory || s.Directory == "/":
		return refuse(e, Malformed, "sealed directory %q", s.Directory)
	case c.open != nil:
		return refuse(e, SealInFlux, "the workspace was sealed while %s ran", c.open.Stage)
	case c.sealed:
		return refuse(e, SealedTwice, "the workspace was already sealed")
	}
	c.sealed = true
	return nil
}

func (c *checker) addUpload(e record.Entry) *Refusal {
	var u record.Upload
	if r := decode(e, &u); r != nil {
		return r
	}
	switch {
	case !c.sealed:
		return refuse(e, NotSealed, "artifact %q was uploaded before the seal", u.FileName)
	case c.open == nil || c.open.Stage != u.Stage || !uploadStage(u.Stage):
		return refuse(e, UploadOutsideStage, "artifact %q was uploaded in stage %q, which was not running or is no upload", u.FileName, u.Stage)
	case u.FileName == "" || strings.ContainsAny(u.FileName, "/\x00") || u.Type == "":
		return refuse(e, Malformed, "artifact's file name %q or type %q", u.FileName, u.Type)
	case !isSHA256(u.SHA256) || u.Bytes < 0 || u.Status != 0 && (u.Status < 100 || u.Status > 599):
		return refuse(e, Malformed, "artifact %q: digest, size or status", u.FileName)
	}
	before := c.members[u.SHA256]
	delete(c.members, u.SHA256)
	if int64(len(before)) != u.Matched {
		return refuse(e, UploadInconsistent, "artifact %q: %d members in lines before, not %d", u.FileName, len(before), u.Matched)
	}
	u.Entries = append(before, u.Entries...)
	if r := checkMembers(e, u); r != nil {
		return r
	}
	c.uploads = append(c.uploads, upload{u, e.Seq})
	return nil
}

// addMembers keeps members until the line of their artifact comes.
func (c *checker) addMembers(e record.Entry) *Refusal {
	var m record.Members
	if r := decode(e, &m); r != nil {
		return r
	}
	switch {
	case !c.sealed:
		return refuse(e, NotSealed, "an artifact was matched before the seal")
	case c.open == nil || c.open.Stage != m.Stage || !uploadStage(m.Stage):
		return refuse(e, UploadOutsideStage, "an artifact was matched in stage %q, which was not running or is no upload", m.Stage)
	case !isSHA256(m.SHA256) || len(m.Entries) == 0:
		return refuse(e, Malformed, "members of an artifact: digest or number")
	}
	c.members[m.SHA256] = append(c.members[m.SHA256], m.Entries...)
	return nil
}

func checkMembers(e record.Entry, u record.Upload) *Refusal {
	seen := make(map[string]bool, len(u.Entries))
	for _, m := range u.Entries {
		switch {
		case !cleanPath(m.Path):
			return refuse(e, UploadInconsistent, "artifact %q: member's path %q", u.FileName, m.Path)
		case seen[m.Path]:
			return refuse(e, UploadInconsistent, "artifact %q: member %q twice", u.FileName, m.Path)
		case m.Kind == "file" && isSHA256(m.SHA256) && m.Target == "":
		case m.Kind == "directory" && m.SHA256 == "" && m.Target == "":
		case m.Kind == "symlink" && m.SHA256 == "" && m.Target != "":
		default:
			return refuse(e, UploadInconsistent, "artifact %q: member %q of kind %q", u.FileName, m.Path, m.Kind)
		}
		seen[m.Path] = true
	}
	return nil
}

// cleanPath reports whether p stays below the directory that it is relative to
// and has one spelling.
func cleanPath(p string) bool {
	return p != "" && p != "." && p != ".." && !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "../") &&
		path.Clean(p) == p && !strings.ContainsRune(p, 0)
}

// addHit keeps a limit that was reached. Only a sandbox in which something runs
// can run into one.
func (c *checker) addHit(e record.Entry) *Refusal {
	var h record.Hit
	if r := decode(e, &h); r != nil {
		return r
	}
	switch h.Limit {
	case "memory", "pids", "disk", "files", "tmpfs":
	default:
		return refuse(e, Malformed, "limit %q", h.Limit)
	}
	if c.open == nil || c.open.Stage != h.Stage {
		return refuse(e, StageNeverStarted, "a limit was reached in %q, which was not running", h.Stage)
	}
	for _, n := range []int64{h.Max, h.Used, h.Count} {
		if n < 0 || n > maxJSONInteger {
			return refuse(e, NumberTooLarge, "%d is not within 0 and 2^53-1", n)
		}
	}
	c.hits = append(c.hits, hit{h, e})
	return nil
}

func (c *checker) addViolation(e record.Entry) *Refusal {
	var v record.Violation
	if r := decode(e, &v); r != nil {
		return r
	}
	return refuse(e, Violation, "%s: %s", v.What, v.Detail)
}

func (c *checker) addClosing(e record.Entry) *Refusal {
	k := &c.closing
	if r := decode(e, k); r != nil {
		return r
	}
	c.finished = e.Time
	switch {
	case k.Result == "system_failure":
		return &Refusal{SystemFailure, e.Seq, "the host could not bring the job to its end: " + k.Detail}
	case k.Result != "success" && k.Result != "failed" && k.Result != "canceled" && k.Result != "timeout":
		return refuse(e, OutcomeUnknown, "job ended as %q", k.Result)
	case k.ExitCode < math.MinInt32 || k.ExitCode > math.MaxInt32:
		return refuse(e, NumberTooLarge, "exit code")
	case c.open != nil:
		return refuse(e, StageOpen, "%s did not end", c.open.Stage)
	case k.Result == "success" && c.scriptFail != "":
		return refuse(e, ResultContradiction, "the job ended as success, but %s did not", c.scriptFail)
	}
	return nil
}

// end checks what only the whole record can show.
func (c *checker) end(entries []record.Entry) *Refusal {
	if len(entries) == 0 {
		return &Refusal{NotClosed, -1, "the record is empty"}
	}
	last := entries[len(entries)-1]
	if last.Kind != record.Closed {
		return &Refusal{NotClosed, -1, "the record does not end in a closed entry"}
	}
	c.head = record.Head{Entries: last.Seq + 1, Hash: last.Hash}
	c.digest = linesDigest(entries)
	return nil
}
