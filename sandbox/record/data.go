package record

// A Kind says what an entry is about and which type its data has.
type Kind string

// The kinds of entries, each with the type of its data.
const (
	JobOpened      Kind = "job_opened"      // [Opened], the first entry
	ImageResolved  Kind = "image_resolved"  // [Image]
	StageStarted   Kind = "stage_started"   // [Started]
	StageEnded     Kind = "stage_ended"     // [Ended]
	SourceVerified Kind = "source_verified" // [Source]
	Fetched        Kind = "fetched"         // [Fetch]
	Blocked        Kind = "blocked"         // [Block]
	Sealed         Kind = "sealed"          // [Seal]
	Matched        Kind = "matched"         // [Members]
	Uploaded       Kind = "uploaded"        // [Upload]
	LimitHit       Kind = "limit_hit"       // [Hit]
	CacheUsed      Kind = "cache_used"      // [Cache]
	Violated       Kind = "violated"        // [Violation]
	Closed         Kind = "closed"          // [Closing], the last entry
)

// data is room for what belongs to the kind; nil if no such kind is known.
func (k Kind) data() any {
	switch k {
	case JobOpened:
		return new(Opened)
	case ImageResolved:
		return new(Image)
	case StageStarted:
		return new(Started)
	case StageEnded:
		return new(Ended)
	case SourceVerified:
		return new(Source)
	case Fetched:
		return new(Fetch)
	case Blocked:
		return new(Block)
	case Sealed:
		return new(Seal)
	case Matched:
		return new(Members)
	case Uploaded:
		return new(Upload)
	case LimitHit:
		return new(Hit)
	case CacheUsed:
		return new(Cache)
	case Violated:
		return new(Violation)
	case Closed:
		return new(Closing)
	}
	return nil
}

// Opened binds the record to one attempt of one job.
type Opened struct {
	Session      string   `json:"session"`       // the host's handle, 32 hex digits
	Attempt      string   `json:"attempt"`       // the authority's name for it
	Nonce        string   `json:"nonce"`         // the authority's, 64 hex digits
	InvocationID string   `json:"invocation_id"` // the authority's
	Profile      string   `json:"profile"`
	Network      Network  `json:"network"`
	Job          Job      `json:"job"`
	External     External `json:"external"`
	Platform     Platform `json:"platform"`
}

// Network says what the sandbox was built to let pass, per role. It is what
// completeness is derived from.
type Network struct {
	Build        string `json:"build"`         // "none" or "border"
	Helper       string `json:"helper"`        // "border"
	PolicyDigest string `json:"policy_digest"` // sha256 of the canonical dependency policy
}

// Job holds facts that GitLab owns: the payload's, checked by the authority.
type Job struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Stage      string `json:"stage"`
	ProjectID  int64  `json:"project_id"`
	Project    string `json:"project"` // full path
	PipelineID int64  `json:"pipeline_id"`
	UserID     int64  `json:"user_id"`
	SourceURI  string `json:"source_uri"` // repository URL without credentials
	Ref        string `json:"ref"`
	RefType    string `json:"ref_type"` // "branch" or "tag"
	Protected  *bool  `json:"protected"`
	SHA        string `json:"sha"`
	TimeoutSec int64  `json:"timeout_seconds"`
}

// External is all that a tenant controls, complete: the statement's
// externalParameters, in the same words. Its schema is described with the
// build type, in package attest.
type External struct {
	Source         string             `json:"source"` // repository URL without credentials
	Ref            string             `json:"ref"`    // refs/heads/… or refs/tags/…
	Project        string             `json:"project"`
	JobName        string             `json:"jobName"`
	JobStage       string             `json:"jobStage"`
	PipelineSource string             `json:"pipelineSource,omitempty"` // a claim: CI_PIPELINE_SOURCE
	Profile        string             `json:"profile"`
	Image          *ImageParameter    `json:"image,omitempty"`
	Services       []ImageParameter   `json:"services,omitempty"`
	Variables      []Variable         `json:"variables,omitempty"`
	Steps          []Step             `json:"steps"`
	Hooks          []Step             `json:"hooks,omitempty"`
	Artifacts      []ArtifactRule     `json:"artifacts,omitempty"`
	Caches         []CacheRule        `json:"caches,omitempty"`
	Dependencies   []DependencyChoice `json:"dependencies,omitempty"`
	Secrets        []string           `json:"secrets,omitempty"` // names alone
	RunDigest      string             `json:"runDigest,omitempty"`
}

// ImageParameter is an image as the job wrote it.
type ImageParameter struct {
	Name       string     `json:"name"`
	Alias      string     `json:"alias,omitempty"`
	Entrypoint []string   `json:"entrypoint,omitempty"`
	Command    []string   `json:"command,omitempty"`
	User       string     `json:"user,omitempty"`
	Platform   string     `json:"platform,omitempty"`
	PullPolicy []string   `json:"pullPolicy,omitempty"`
	Variables  []Variable `json:"variables,omitempty"`
}

// Variable is one job variable, in the payload's order, duplicates kept.
// Value stands only where GitLab marks the variable public and not masked;
// otherwise Commitment is HMAC-SHA256, under the authority's key for this
// attempt, of the name, a zero byte and the value, in lower-case hex.
type Variable struct {
	Name       string  `json:"name"`
	Value      *string `json:"value,omitempty"`
	Commitment string  `json:"commitment,omitempty"`
	Public     bool    `json:"public,omitempty"`
	Masked     bool    `json:"masked,omitempty"`
	File       bool    `json:"file,omitempty"`
	Raw        bool    `json:"raw,omitempty"`
}

// Step is a script as digest: SHA-256 over its lines, each ended by a newline.
type Step struct {
	Name         string `json:"name"`
	Digest       string `json:"digest"`
	When         string `json:"when,omitempty"`
	AllowFailure bool   `json:"allowFailure,omitempty"`
	TimeoutSec   int64  `json:"timeoutSeconds,omitempty"`
}

// ArtifactRule is one entry of the job's artifacts.
type ArtifactRule struct {
	Name      string   `json:"name,omitempty"`
	Type      string   `json:"type,omitempty"`
	Format    string   `json:"format,omitempty"`
	Paths     []string `json:"paths,omitempty"`
	Exclude   []string `json:"exclude,omitempty"`
	Untracked bool     `json:"untracked,omitempty"`
	When      string   `json:"when,omitempty"`
	ExpireIn  string   `json:"expireIn,omitempty"`
}

// CacheRule is one entry of the job's cache.
type CacheRule struct {
	Key          string   `json:"key,omitempty"`
	Policy       string   `json:"policy,omitempty"`
	Paths        []string `json:"paths,omitempty"`
	Untracked    bool     `json:"untracked,omitempty"`
	When         string   `json:"when,omitempty"`
	FallbackKeys []string `json:"fallbackKeys,omitempty"`
}

// DependencyChoice is an earlier job whose artifacts this job asked for.
type DependencyChoice struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
}

// Platform is set by the platform alone: the statement's internalParameters.
type Platform struct {
	RunnerVersion   string `json:"runner_version,omitempty"` // a claim of the runner's binary
	ExecutorVersion string `json:"executor_version"`
	SandboxdVersion string `json:"sandboxd_version"`
	ConfigDigest    string `json:"config_digest"` // sha256 of sandboxd's configuration file
	Runtime         string `json:"runtime"`       // e.g. "containerd v2.3.7, runc 1.5.2"
	Kernel          string `json:"kernel"`
	Architecture    string `json:"architecture"`
	MemoryBytes     int64  `json:"memory_bytes"`
	CPUMillis       int64  `json:"cpu_millis"`
	Pids            int64  `json:"pids"`

	Limits *Limits `json:"limits,omitempty"`
}

// Limits are what bounded the job beside memory, processors and processes: each
// container for itself, but for the disk, which all of them share. Zero is the
// kernel's own bound, or none.
type Limits struct {
	SwapBytes        int64        `json:"swap_bytes"` // beyond memory
	ReservationBytes int64        `json:"reservation_bytes"`
	CPUShares        int64        `json:"cpu_shares"`
	CPUSet           string       `json:"cpu_set"`    // processors, as the kernel lists them
	DiskBytes        int64        `json:"disk_bytes"` // workspace and container files together
	ShmBytes         int64        `json:"shm_bytes"`
	OpenFiles        int64        `json:"open_files"`
	Ulimits          []Ulimit     `json:"ulimits,omitempty"`
	Tmpfs            []TmpfsMount `json:"tmpfs,omitempty"`   // of the build container
	Devices          []string     `json:"devices,omitempty"` // of the build container, beyond the usual
}

// Ulimit is a limit of each process; -1 is none.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// TmpfsMount is memory that looks like a directory.
type TmpfsMount struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	Exec  bool   `json:"exec,omitempty"`
}

// Image is what a name came to before it was pulled and run, by digest. A job
// has one entry a service that is run, in the order of [External].Services; a
// service starts when the work tree has been compared, and no earlier.
type Image struct {
	Role      string `json:"role"`            // "build", "helper" or "service"
	Name      string `json:"name"`            // as written
	Reference string `json:"reference"`       // canonical: registry/repository@digest of the manifest
	Manifest  string `json:"manifest"`        // sha256:…
	Index     string `json:"index,omitempty"` // sha256:… of the index that named it
	Config    string `json:"config"`          // sha256:…
	Platform  string `json:"platform"`

	Names []string `json:"names,omitempty"` // that a service answers to
}

// Started precedes the first instruction of a stage.
type Started struct {
	Stage        string `json:"stage"`
	Role         string `json:"role"`
	ScriptDigest string `json:"script_digest"` // sha256 of the bytes that the shell read
	ScriptBytes  int64  `json:"script_bytes"`
}

// Ended follows the last instruction of a stage: nothing of it runs any more.
type Ended struct {
	Stage      string `json:"stage"`
	Role       string `json:"role"`
	Outcome    string `json:"outcome"` // "success", "failed", "canceled" or "system_failure"
	ExitCode   int    `json:"exit_code"`
	DurationMS int64  `json:"duration_ms"`
	Detail     string `json:"detail,omitempty"`
}

// Source is the workspace compared, from outside, with the payload's commit.
type Source struct {
	Outcome string   `json:"outcome"`         // "match", "mismatch" or "absent"
	Commit  string   `json:"commit"`          // the payload's
	Format  string   `json:"format"`          // "sha1" or "sha256"
	Tree    string   `json:"tree,omitempty"`  // the commit's tree
	Found   string   `json:"found,omitempty"` // the workspace's tree, where it differs
	Files   int64    `json:"files"`
	Bytes   int64    `json:"bytes"`
	Differs []string `json:"differs,omitempty"` // the first few paths that differ
	Detail  string   `json:"detail,omitempty"`
	// Submodules are those that were checked out, sorted by path. Each was
	// compared with the commit that its superproject's tree names.
	Submodules []Submodule `json:"submodules,omitempty"`
	// Converted are files that are equal to what the commit's own
	// .gitattributes make of their blobs in a work tree.
	Converted int64 `json:"converted,omitempty"`
}

// Submodule is one repository inside another's work tree.
type Submodule struct {
	Path   string `json:"path"` // below the project directory
	Commit string `json:"commit"`
	Tree   string `json:"tree"`
	// URL is where .gitmodules of the superproject's commit says that it is:
	// absolute, by https or http, without credentials. Empty where it says
	// nothing that has such a form.
	URL string `json:"url,omitempty"`
}

// Fetch is one exchange that the border let pass. It is durable before the
// client has the answer's last byte.
type Fetch struct {
	Stage         string   `json:"stage"`
	Role          string   `json:"role"`
	Method        string   `json:"method"`
	URL           string   `json:"url"` // canonical, credentials and signatures redacted
	Status        int      `json:"status"`
	SHA256        string   `json:"sha256"` // of the answer's body, as it came from the origin
	Bytes         int64    `json:"bytes"`
	MediaType     string   `json:"media_type,omitempty"`
	RequestSHA256 string   `json:"request_sha256,omitempty"` // of the request's body, if any
	RequestBytes  int64    `json:"request_bytes,omitempty"`
	Redirects     []string `json:"redirects,omitempty"`
	Rule          string   `json:"rule"`                 // the rule that allowed it
	Incomplete    string   `json:"incomplete,omitempty"` // why the body was not read to its end

	Git *GitRequest `json:"git,omitempty"` // what was asked of git-upload-pack, where that could be read

	// Invocation and Attestation are those of the attempt that made the artifact
	// of an earlier job, as in [Cache]. They are empty where nobody vouches for it,
	// and for all that is no such artifact.
	Invocation  string `json:"invocation,omitempty"`
	Attestation string `json:"attestation,omitempty"`
}

// GitRequest is what a client asked of a git server.
type GitRequest struct {
	Command string   `json:"command"`         // "refs" or "fetch"
	Wants   []string `json:"wants,omitempty"` // objects asked for, sorted
	// Pack says that the answer carried a pack: the server had all objects
	// that were wanted, for otherwise it sends none.
	Pack bool `json:"pack,omitempty"`
}

// Block is one attempt to pass the border that was refused.
type Block struct {
	Stage    string `json:"stage"`
	Role     string `json:"role"`
	Protocol string `json:"protocol"` // "http", "https", "tls", "tcp", "dns", "udp"
	Method   string `json:"method,omitempty"`
	Target   string `json:"target"` // URL or host:port, redacted
	Rule     string `json:"rule"`
	Reason   string `json:"reason"`
	Count    int64  `json:"count,omitempty"` // further identical ones that this entry stands for
	// Remedy is what the job's author can do: told, not recorded.
	Remedy string `json:"-"`
}

// Seal says that the project directory can no longer change.
type Seal struct {
	Directory string `json:"directory"` // in the container, e.g. /builds/group/project
}

// Upload is one artifact as it crossed the border towards GitLab, after each of
// its entries was found equal to a sealed file.
type Upload struct {
	Stage    string        `json:"stage"`
	FileName string        `json:"file_name"` // as sent to GitLab
	Type     string        `json:"type"`      // GitLab's artifact_type, e.g. "archive"
	Format   string        `json:"format"`    // "zip", "gzip" or "raw"
	SHA256   string        `json:"sha256"`    // of the file that GitLab received
	Bytes    int64         `json:"bytes"`
	Status   int           `json:"status"` // GitLab's answer; 0 where it was lost
	Entries  []UploadEntry `json:"entries"`
	// Matched counts the entries that stand in "matched" lines before this one.
	Matched int64 `json:"matched,omitempty"`
}

// Members are entries of an artifact that has more of them than one line can
// hold. They come before the artifact is sent; its "uploaded" line follows and
// has the rest.
type Members struct {
	Stage   string        `json:"stage"`
	SHA256  string        `json:"sha256"` // of the artifact
	Entries []UploadEntry `json:"entries"`
}

// UploadEntry is one member of an archive.
type UploadEntry struct {
	Path   string `json:"path"`             // relative to the project directory, clean, with slashes
	Kind   string `json:"kind"`             // "file", "directory" or "symlink"
	SHA256 string `json:"sha256,omitempty"` // of a file's content
	Bytes  int64  `json:"bytes,omitempty"`
	Target string `json:"target,omitempty"` // of a symlink
	Mode   uint32 `json:"mode,omitempty"`   // permission bits
}

// Hit is a limit that something in the sandbox ran into, as seen from outside:
// what it was told of it is its own affair.
type Hit struct {
	Stage string `json:"stage"`
	Role  string `json:"role"`            // the container; empty for what all share
	Limit string `json:"limit"`           // "memory", "pids", "disk", "files" or "tmpfs"
	Path  string `json:"path,omitempty"`  // of a tmpfs
	Max   int64  `json:"max"`             // bytes, processes or files
	Used  int64  `json:"used"`            // the most that was seen
	Count int64  `json:"count,omitempty"` // processes ended, or refused
}

// Cache is an archive of a cache that was given to the job, kept of it, or refused,
// on the host or in an object storage. What is given is recorded before the job has
// a byte of it.
type Cache struct {
	Stage  string `json:"stage"`  // of the runner, for which it is given or by which it was made
	Key    string `json:"key"`    // as the job's rule comes to, where the host can tell
	Action string `json:"action"` // "restored", "stored" or "refused"
	SHA256 string `json:"sha256,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	// Invocation and Attestation are those of the attempt that made what is
	// restored: its invocation id, and the sha256 of the bundle that has the
	// archive among its subjects. They are empty where nobody vouches for it.
	Invocation  string `json:"invocation,omitempty"`
	Attestation string `json:"attestation,omitempty"`
	Detail      string `json:"detail,omitempty"` // why it was refused
}

// Violation is evidence that contradicts itself. A record that has one is
// never attested.
type Violation struct {
	Stage  string `json:"stage"`
	What   string `json:"what"` // e.g. "artifact differs from the sealed workspace"
	Detail string `json:"detail"`
}

// Closing ends the record.
type Closing struct {
	Result   string `json:"result"` // "success", "failed", "canceled", "timeout" or "system_failure"
	ExitCode int    `json:"exit_code"`
	Detail   string `json:"detail,omitempty"`
}
