package config

import (
	"net/url"
	"slices"
	"time"

	"hallmark.build/config/tomlfile"
)

// Sandboxd is the configuration of hallmark-sandboxd, which runs as root.
type Sandboxd struct {
	// Socket is the unix socket on which drivers are served. Default
	// "/run/hallmark/sandboxd.sock". A writer of this field can keep drivers
	// from finding the daemon, no more: peers are checked by SocketUser.
	Socket string `toml:"socket"`
	// SocketUser is the user, by name or number, who may connect besides root.
	// Default "gitlab-runner". A writer of this field can let another user
	// start sandboxes; what such a user claims about a job is still
	// checked with GitLab by the authority.
	SocketUser string `toml:"socket_user"`
	// StateDir holds images, workspaces and evidence across restarts. Default
	// "/var/lib/hallmark/sandboxd". A writer of the directory can change
	// images and evidence that the authority has not acknowledged yet.
	StateDir string `toml:"state_dir"`
	// RunDir holds sockets and mounts until the next boot. Default
	// "/run/hallmark/sandboxd". A writer of the directory can drive containers.
	RunDir string `toml:"run_dir"`
	// GitLabURL is the GitLab that the runner is registered with; required. A
	// writer of this field can have jobs of another GitLab run here; the
	// authority, which has its own setting, will not attest them.
	GitLabURL *url.URL `toml:"gitlab_url"`
	// GitLabCA is a PEM file with the roots that GitLab's certificate must
	// chain to. Default "": the host's roots. A writer of the file can
	// impersonate GitLab towards the border.
	GitLabCA string `toml:"gitlab_ca"`
	// GitLabRunner is the gitlab-runner binary that helper containers get,
	// read-only. Default "/usr/bin/gitlab-runner". A writer of the binary runs
	// as the helper, which is not trusted with facts.
	GitLabRunner string `toml:"gitlab_runner"`
	// HelperImage is the image of the helper container; required. It needs a
	// shell, git and CA certificates. Name it by digest. A writer of this field
	// chooses what fetches sources; they are verified from outside all the same.
	HelperImage string `toml:"helper_image"`
	// DefaultImage is the image of jobs that name none. Default "": such jobs
	// fail. A writer of this field chooses the tools that those jobs build with.
	DefaultImage string `toml:"default_image"`
	// SourceMismatch says what happens to a job whose work tree is not that of
	// its commit: "refuse" fails it, "declare" records it. Default "refuse". A
	// writer of this field can let a job build other sources, but the
	// statement says so.
	SourceMismatch string `toml:"source_mismatch"`
	// UnattestedArtifacts says what happens to artifacts of earlier jobs that have
	// no attestation: "accept" hands them to the job and records that nobody
	// vouches for them, "refuse" keeps them from it. Default "accept". Those of an
	// attested job must be what it made, whatever this says. A writer of this field
	// can let unattested files into builds.
	UnattestedArtifacts string `toml:"unattested_artifacts"`
	// UpstreamCA is a PEM file with the roots for all hosts but GitLab that the
	// border fetches from. Default "": the host's roots. A writer of the file
	// can impersonate every registry towards the border.
	UpstreamCA string `toml:"upstream_ca"`
	// StopGrace is the time that a cancelled stage has between SIGTERM and
	// SIGKILL. Default "10s"; at most 100s, below the runner's kill timeout. A
	// writer of this field can only make cancelling slow.
	StopGrace time.Duration `toml:"stop_grace"`

	// ReadOnlyRoot makes the root file system of the job's container read-only:
	// it can write to its workspace, /tmp and /run. Default false, as under the
	// Docker executor. A writer of this field can make jobs fail, no more.
	ReadOnlyRoot bool `toml:"read_only_root"`

	Containerd Containerd  `toml:"containerd"`
	Images     Images      `toml:"images"`
	Limits     Limits      `toml:"limits"`
	Services   Services    `toml:"services"`
	IDs        IDs         `toml:"ids"`
	Cache      Cache       `toml:"cache"`
	Allow      []AllowRule `toml:"allow"`
	Git        Git         `toml:"git"`
	Authority  Authority   `toml:"authority"`

	// Digest is the SHA-256 of the file's bytes in lower-case hex.
	Digest string
}

// Containerd says which containerd runs the containers.
type Containerd struct {
	// Address is the socket of an installed containerd. Default "": a private
	// instance is started and supervised. A writer of this field can hand every
	// container to another runtime.
	Address string `toml:"address"`
	// BinDir holds containerd, its shim, runc and hallmark-init. Default
	// "/usr/lib/hallmark". A writer of the directory is root on this host.
	BinDir string `toml:"bin_dir"`
}

// Images says which images may run, and how they come here.
type Images struct {
	// Allowed are globs that an image's full name must match, such as
	// "registry.example.com/ci/**". Default []: every image. A writer of this
	// field can admit images that the admin does not trust.
	Allowed []string `toml:"allowed"`
	// AllowedServices are globs for the images of services. Default []: those of
	// Allowed. A writer of this field can admit images that the admin does not
	// trust.
	AllowedServices []string `toml:"allowed_services"`
	// PlainHTTP are registries, as host or host:port, that are spoken to
	// without TLS. Default []. Whoever is on the network path to one of them can
	// choose what a tag resolves to.
	PlainHTTP []string `toml:"plain_http"`
	// CA is a PEM file with the roots for registries. Default "": the host's
	// roots. A writer of the file can impersonate every registry.
	CA string `toml:"ca"`
	// AuthFile holds logins for registries, in the form of Docker's config.json
	// with auths, credHelpers and credsStore. Default "": none. Every job may
	// pull with them, as with those of the Docker executor. A writer of the file
	// can have programs run as root, so root alone may write it.
	AuthFile string `toml:"auth_file"`
	// PullPolicy holds what is tried, in order, for an image of which the job
	// says nothing: "always", "if-not-present", "never". Default ["always"]. A
	// writer of this field can let jobs use images that their registry has
	// replaced since.
	PullPolicy []string `toml:"pull_policy"`
	// AllowedPullPolicies are those that a job may ask for. Default []: those of
	// PullPolicy. What holds for PullPolicy holds for it.
	AllowedPullPolicies []string `toml:"allowed_pull_policies"`
	// User runs the scripts of every job, whatever the job and its image say.
	// Default "": the job's, or the image's. It means nothing outside of the
	// container; a writer of this field can make jobs fail.
	User string `toml:"user"`
	// AllowedUsers are those that a job may name. Default []: User, or every
	// user if that is empty. A writer of this field can let jobs be root in
	// their containers.
	AllowedUsers []string `toml:"allowed_users"`
	// DisableEntrypointOverwrite has the image's entrypoint run whatever the
	// job says. Default false. A writer of this field can let jobs go around an
	// entrypoint that the admin relies on.
	DisableEntrypointOverwrite bool `toml:"disable_entrypoint_overwrite"`
	// PullsAtOnce is how many images are pulled at a time. Default 4; further
	// ones wait for their turn. A writer of this field can make jobs slow.
	PullsAtOnce int `toml:"pulls_at_once"`
	// KeepBytes is how much disk images that no job uses may take together with
	// the rest, packed and unpacked, before the longest unused are removed.
	// Default "64GiB"; 0 is no limit. A writer of this field can fill the disk,
	// or have images pulled again and again.
	KeepBytes int64 `toml:"keep_bytes,size"`
	// KeepFor is how long an image stays that no job asks for. Default "336h";
	// 0 is no limit. For a writer of this field holds what KeepBytes says.
	KeepFor time.Duration `toml:"keep_for"`
	// MinFree is the disk space below which unused images are removed. Default
	// "2GiB"; 0 is no limit. For a writer of this field holds what KeepBytes says.
	MinFree int64 `toml:"min_free,size"`
}

// Services bound what jobs run beside the build. A writer of these can let one
// job starve the others on this host.
type Services struct {
	// Limit is the number of services that a job may ask for, 64 at most.
	// Default 16; 0 refuses jobs that have services.
	Limit int `toml:"limit"`
	// WaitTimeout is how long a job waits until its services listen, before it
	// goes on with a warning. Default "30s"; "0s" or less does not wait. A writer
	// of this field can only make jobs slow, or start them too early.
	WaitTimeout time.Duration `toml:"wait_timeout"`
	// DebugLogs lets jobs that set CI_DEBUG_SERVICES have what their services say
	// in the job log, where whoever may see the log reads it. Default true.
	DebugLogs bool `toml:"debug_logs"`
	// Memory of each service, written "1GiB". Default "0B": as Limits.Memory. What is
	// lowered for a project, or by a job, is lowered for its services too, here and
	// below.
	Memory int64 `toml:"memory,size"`
	// CPUs of each service. Default 0: as Limits.CPUs.
	CPUs float64 `toml:"cpus"`
	// Pids of each service. Default 0: as Limits.Pids.
	Pids int64 `toml:"pids"`
}

// IDs are the host's user and group ids that containers run as, in ranges of
// [IDRange] each, one range a job. No account of the host may lie in them. A
// writer of these can make a container share ids with something on the host.
type IDs struct {
	// First is the first id of the first range. Default 200000000.
	First uint32 `toml:"first"`
	// Ranges is the number of ranges, and so of jobs at a time. Default 1024.
	Ranges int `toml:"ranges"`
}

// IDRange is the number of ids in each range.
const IDRange = 65536

// Cache says what jobs may keep for later ones, per profile: "off",
// nothing; "own", what an attested job of the same project, protection and profile
// made; "full", also what nobody vouches for, and the statement says so. Projects
// share nothing in any of them.
type Cache struct {
	// Hermetic is for jobs of that profile. Default "own". A writer of this field
	// can let unattested files into builds.
	Hermetic string `toml:"hermetic"`
	// Firewalled is for jobs of that profile. Default "own". A writer of this field
	// can let unattested files into builds.
	Firewalled string `toml:"firewalled"`
	// Archive is the size that one may have, in bytes, written "2GiB". Default
	// "2GiB". A writer of this field can fill the disk below StateDir.
	Archive int64 `toml:"archive,size"`
	// Total is what all archives may take. Default "20GiB"; those used longest ago
	// go first. A writer of this field can fill the disk below StateDir.
	Total int64 `toml:"total,size"`
	// Age is how long an archive stays that no job uses. Default "336h". A writer
	// of this field can only make caches useless.
	Age time.Duration `toml:"age"`
	// Servers are where the object storage of the runner's [runners.cache] keeps
	// caches: a URL as those of what lies there begin, to the host
	// ("https://minio.example.com:9000") or, where others have buckets there too, to
	// the bucket ("https://storage.googleapis.com/ci-caches"). Default []: caches lie
	// on this host. A writer of this field can have helpers of jobs, in the stages that
	// restore and archive caches, send sealed files, and blocks of a cache whatever they
	// are, to another server and ask one at any address, private ones too; what comes
	// from there is looked up all the same.
	Servers []*url.URL `toml:"servers"`
}

// AllowRule is one line of the firewalled profile's allow-list. A writer of
// these opens the network to tenants; what passes is recorded all the same,
// and the digest of the list is in the provenance.
type AllowRule struct {
	// Name is what the record and the job log call the rule; required, unique.
	Name string `toml:"name"`
	// Host is a name, or "*.example.com" for all names below it; required.
	Host string `toml:"host"`
	// Ports; default []: those that the dependency policy takes as standard.
	Ports []int `toml:"ports"`
	// Methods of HTTP; default []: GET and HEAD.
	Methods []string `toml:"methods"`
	// Paths are prefixes of the URL's path; default []: every path.
	Paths []string `toml:"paths"`
}

// Git says which repositories get_sources may read besides the job's own, for
// submodules. It may never write to one. What was read is recorded, and so are
// the objects that were asked for.
type Git struct {
	// Submodules opens other repositories: "same-gitlab" those of gitlab_url that
	// the job's token opens, "off" none. Default "same-gitlab". A writer of this
	// field can have jobs take in what other projects share with them, and the
	// statement lists it.
	Submodules string `toml:"submodules"`
	// Allow opens repositories of other servers, under every profile.
	Allow []GitRule `toml:"allow"`
}

// GitRule is one line of the list of repositories that submodules may come
// from. A writer of these opens the network to get_sources, whose hooks the
// tenant writes: for git's and Git LFS's requests that read, recorded.
type GitRule struct {
	// Name is what the record and the job log call the rule; required, unique
	// among these rules and those of allow.
	Name string `toml:"name"`
	// Host is a name, or "*.example.com" for all names below it; required.
	Host string `toml:"host"`
	// Ports; default []: those that the dependency policy takes as standard.
	Ports []int `toml:"ports"`
	// Paths are prefixes of the repository's path; default []: every repository.
	Paths []string `toml:"paths"`
}

// Authority says where evidence is sent.
type Authority struct {
	// Socket is the signing authority's unix socket. Default
	// "/run/hallmark-attestd/attestd.sock". A writer of this field can send
	// evidence to another authority, whose signatures no verifier trusts.
	Socket string `toml:"socket"`
	// Address is the host:port of an authority on another machine, which
	// this host has joined. Default "": the authority on Socket. What holds for
	// Socket holds for it.
	Address string `toml:"address"`
	// Unavailable says what becomes of a job when the authority does not answer
	// as it is closed: "fail" fails it, "spool" lets it end and closes it later.
	// Default "fail". A writer of this field can let jobs pass that are attested
	// late, or never.
	Unavailable string `toml:"unavailable"`
}

// DefaultSandboxd is the configuration before a file is read. What is required
// is missing from it.
func DefaultSandboxd() Sandboxd {
	return Sandboxd{
		Socket:         "/run/hallmark/sandboxd.sock",
		SocketUser:     "gitlab-runner",
		StateDir:       "/var/lib/hallmark/sandboxd",
		RunDir:         "/run/hallmark/sandboxd",
		GitLabRunner:   "/usr/bin/gitlab-runner",
		SourceMismatch: "refuse", UnattestedArtifacts: "accept",
		StopGrace:  10 * time.Second,
		Containerd: Containerd{BinDir: "/usr/lib/hallmark"},
		Images: Images{PullPolicy: []string{"always"}, PullsAtOnce: 4,
			KeepBytes: 64 << 30, KeepFor: 14 * 24 * time.Hour, MinFree: 2 << 30},
		Limits:    DefaultLimits(),
		Services:  Services{Limit: 16, WaitTimeout: 30 * time.Second, DebugLogs: true},
		IDs:       IDs{First: 200_000_000, Ranges: 1024},
		Cache:     Cache{Hermetic: "own", Firewalled: "own", Archive: 2 << 30, Total: 20 << 30, Age: 14 * 24 * time.Hour},
		Git:       Git{Submodules: "same-gitlab"},
		Authority: Authority{Socket: "/run/hallmark-attestd/attestd.sock", Unavailable: "fail"},
	}
}

// LoadSandboxd reads hallmark-sandboxd's file. The error is [Errors] or an [*Error].
func LoadSandboxd(path string) (Sandboxd, error) {
	data, err := read(KindSandboxd, path)
	if err != nil {
		return Sandboxd{}, err
	}
	return ParseSandboxd(path, data)
}

// ParseSandboxd reads the bytes of hallmark-sandboxd's file; path is its name in errors.
func ParseSandboxd(path string, data []byte) (Sandboxd, error) {
	doc, err := tomlfile.Parse(path, data)
	if err != nil {
		return Sandboxd{}, err
	}
	cfg := DefaultSandboxd()
	doc.Decode(&cfg)
	if doc.Err() == nil {
		cfg.check(checker{doc})
	}
	if err := doc.Err(); err != nil {
		return Sandboxd{}, err
	}
	cfg.Digest = digest(data)
	return cfg, nil
}

func (s *Sandboxd) check(c checker) {
	c.socket("socket", s.Socket)
	c.user("socket_user", s.SocketUser)
	c.path("state_dir", s.StateDir)
	c.path("run_dir", s.RunDir)
	c.apart("state_dir", s.StateDir, "run_dir", s.RunDir)
	c.gitlabURL("gitlab_url", s.GitLabURL)
	c.optionalPath("gitlab_ca", s.GitLabCA)
	c.path("gitlab_runner", s.GitLabRunner)
	c.required("helper_image", `an image by digest, as helper_image = "registry.example.com/hallmark/helper@sha256:…"`, s.HelperImage)
	c.image("helper_image", s.HelperImage)
	c.image("default_image", s.DefaultImage)
	c.oneOf("source_mismatch", s.SourceMismatch, "refuse", "declare")
	c.oneOf("unattested_artifacts", s.UnattestedArtifacts, "accept", "refuse")
	c.optionalPath("upstream_ca", s.UpstreamCA)
	c.duration("stop_grace", s.StopGrace, time.Second, 100*time.Second)

	if s.Containerd.Address != "" {
		c.socket("containerd.address", s.Containerd.Address)
	}
	c.path("containerd.bin_dir", s.Containerd.BinDir)
	s.Images.check(c)
	s.Limits.check(c)
	s.Services.check(c)
	s.IDs.check(c)
	s.Cache.check(c)
	c.rules("allow", s.Allow)
	c.oneOf("git.submodules", s.Git.Submodules, "same-gitlab", "off")
	c.gitRules("git.allow", s.Git.Allow, s.Allow)
	c.socket("authority.socket", s.Authority.Socket)
	if s.Authority.Address != "" {
		c.listen("authority.address", s.Authority.Address)
	}
	c.oneOf("authority.unavailable", s.Authority.Unavailable, "fail", "spool")
}

func (i Images) check(c checker) {
	c.globs("images.allowed", i.Allowed)
	c.globs("images.allowed_services", i.AllowedServices)
	c.registries("images.plain_http", i.PlainHTTP)
	c.optionalPath("images.ca", i.CA)
	c.optionalPath("images.auth_file", i.AuthFile)
	c.pullPolicies("images.pull_policy", i.PullPolicy)
	c.pullPolicies("images.allowed_pull_policies", i.AllowedPullPolicies)
	if len(i.PullPolicy) == 0 {
		c.doc.Report("images.pull_policy", `as pull_policy = ["always"]`, "must not be empty")
	}
	if len(i.AllowedPullPolicies) > 0 && !slices.ContainsFunc(i.PullPolicy, func(p string) bool { return slices.Contains(i.AllowedPullPolicies, p) }) {
		c.doc.Report("images.allowed_pull_policies", "jobs that say nothing could not pull", "has none of images.pull_policy")
	}
	c.imageUsers("images.user", i.User)
	c.imageUsers("images.allowed_users", i.AllowedUsers...)
	c.between("images.pulls_at_once", int64(i.PullsAtOnce), 1, 256)
	c.duration("images.keep_for", i.KeepFor, 0, 10*365*24*time.Hour)
	c.size("images.keep_bytes", i.KeepBytes, 0, 1<<60)
	c.size("images.min_free", i.MinFree, 0, 1<<50)
}

func (s Services) check(c checker) {
	c.between("services.limit", int64(s.Limit), 0, 64)
	c.duration("services.wait_timeout", s.WaitTimeout, -time.Second, 10*time.Minute)
	if s.Memory != 0 {
		c.size("services.memory", s.Memory, 64<<20, 1<<50)
	}
	if !(s.CPUs == 0 || s.CPUs >= 0.01 && s.CPUs <= 4096) {
		c.doc.Report("services.cpus", "0 means those of limits.cpus", "%v is not between 0.01 and 4096", s.CPUs)
	}
	if s.Pids != 0 {
		c.between("services.pids", s.Pids, 32, 4<<20)
	}
}

func (i IDs) check(c checker) {
	// 0 to 65535 belong to the host's accounts, and 4294967295 is "no id".
	const last = 1<<32 - 2
	if i.First < IDRange {
		c.doc.Report("ids.first", "take a range that no account and no other container runtime uses",
			"%d lies among the host's own ids, 0 to %d", i.First, IDRange-1)
		return
	}
	c.between("ids.ranges", int64(i.Ranges), 1, 65535)
	if end := int64(i.First) + int64(i.Ranges)*IDRange - 1; i.Ranges > 0 && end > last {
		c.doc.Report("ids.ranges", "", "%d ranges of %d from %d end at %d, after the last id, %d",
			i.Ranges, IDRange, i.First, end, int64(last))
	}
}

func (k Cache) check(c checker) {
	c.oneOf("cache.hermetic", k.Hermetic, "off", "own", "full")
	c.oneOf("cache.firewalled", k.Firewalled, "off", "own", "full")
	c.size("cache.archive", k.Archive, 1<<20, 1<<40)
	c.size("cache.total", k.Total, 1<<20, 1<<50)
	if k.Archive > k.Total {
		c.doc.Report("cache.total", "one archive must fit into the whole",
			"%s is less than cache.archive, %s", tomlfile.FormatSize(k.Total), tomlfile.FormatSize(k.Archive))
	}
	c.duration("cache.age", k.Age, time.Hour, 10*365*24*time.Hour)
	c.cacheServers("cache.servers", k.Servers)
}
