package config

import (
	"bufio"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/integration/document"
)

const minimalSandboxd = "gitlab_url = 'https://gitlab.example.com'\nhelper_image = 'registry.example.com/helper@sha256:00'\n"

const minimalAttestd = "gitlab_url = 'https://gitlab.example.com'\nbuilder_uri = 'https://ci.example.com/hallmark'\n"

func TestSandboxdDefaults(t *testing.T) {
	got, err := ParseSandboxd("s.toml", []byte(minimalSandboxd))
	if err != nil {
		t.Fatal(err)
	}
	want := Sandboxd{
		Socket:         "/run/hallmark/sandboxd.sock",
		SocketUser:     "gitlab-runner",
		StateDir:       "/var/lib/hallmark/sandboxd",
		RunDir:         "/run/hallmark/sandboxd",
		GitLabURL:      &url.URL{Scheme: "https", Host: "gitlab.example.com"},
		GitLabRunner:   "/usr/bin/gitlab-runner",
		HelperImage:    "registry.example.com/helper@sha256:00",
		SourceMismatch: "refuse", UnattestedArtifacts: "accept",
		StopGrace:  10 * time.Second,
		Containerd: Containerd{BinDir: "/usr/lib/hallmark"},
		Images: Images{PullPolicy: []string{"always"}, PullsAtOnce: 4,
			KeepBytes: 68719476736, KeepFor: 336 * time.Hour, MinFree: 2147483648},
		Limits:    Limits{Memory: 4294967296, Pids: 4096, Disk: 32 << 30, Shm: 512 << 20, Tmpfs: 536870912, OpenFiles: 1048576},
		Services:  Services{Limit: 16, WaitTimeout: 30 * time.Second, DebugLogs: true},
		IDs:       IDs{First: 200000000, Ranges: 1024},
		Cache:     Cache{Hermetic: "own", Firewalled: "own", Archive: 2147483648, Total: 21474836480, Age: 336 * time.Hour},
		Git:       Git{Submodules: "same-gitlab"},
		Authority: Authority{Socket: "/run/hallmark-attestd/attestd.sock", Unavailable: "fail"},
		Digest:    digest([]byte(minimalSandboxd)),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAttestdDefaults(t *testing.T) {
	got, err := ParseAttestd("a.toml", []byte(minimalAttestd))
	if err != nil {
		t.Fatal(err)
	}
	want := Attestd{
		Socket:     "/run/hallmark-attestd/attestd.sock",
		Hosts:      []string{"root"},
		HTTP:       "127.0.0.1:8470",
		StateDir:   "/var/lib/hallmark-attestd",
		GitLabURL:  &url.URL{Scheme: "https", Host: "gitlab.example.com"},
		BuilderURI: "https://ci.example.com/hallmark",
		Issuer:     "https://ci.example.com/hallmark",
		Digest:     digest([]byte(minimalAttestd)),

		GitLabUnavailable: "fail",
		IDTokenAudience:   "https://ci.example.com/hallmark",
		Log:               Log{Kind: "built-in"},
		Store:             Store{Region: "us-east-1"},
		Limits:            HostLimits{Calls: 32, OpenAttempts: 1024, OpensPerMinute: 600},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSandboxdAllSet(t *testing.T) {
	got, err := ParseSandboxd("s.toml", []byte(`
socket = "/s"
socket_user = "1000"
state_dir = "/a"
run_dir = "/b"
gitlab_url = "http://127.0.0.1:8080/gitlab/"
gitlab_ca = "/ca"
gitlab_runner = "/gr"
helper_image = "h"
default_image = "d"
source_mismatch = "declare"
unattested_artifacts = "refuse"
upstream_ca = "/u"
stop_grace = "1m"
read_only_root = true
[containerd]
address = "/run/containerd/containerd.sock"
bin_dir = "/bin"
[images]
allowed = ["registry.example.com/{a,b}/**"]
plain_http = ["localhost:5000", "[::1]:5000", "127.0.0.1"]
ca = "/i"
allowed_services = ["registry.example.com/services/**"]
auth_file = "/etc/hallmark/registries.json"
pull_policy = ["always", "if-not-present"]
allowed_pull_policies = ["always", "if-not-present", "never"]
user = "1000:1000"
allowed_users = ["1000:1000", "builder"]
disable_entrypoint_overwrite = true
pulls_at_once = 2
keep_bytes = "1TiB"
keep_for = "24h"
min_free = "0KiB"
[limits]
memory = "1TiB"
cpus = 1.5
pids = 64
tmpfs = "1MiB"
open_files = 64
memory_swap = "2TiB"
memory_reservation = "1GiB"
cpu_shares = 512
cpuset = "0-3,6"
disk = "64MiB"
shm = "2MiB"
ulimits = ["core=0", "memlock=1:unlimited"]
preparing = 7
[[limits.tmpfs_mount]]
path = "/scratch"
size = "1GiB"
exec = true
[[limits.device]]
path = "/dev/kvm"
projects = ["g/**"]
[[limits.project]]
project = "g/*"
memory = "1GiB"
cpus = 0.5
pids = 64
disk = "64MiB"
shm = "1MiB"
[services]
limit = 0
wait_timeout = "-1s"
debug_logs = false
memory = "64MiB"
cpus = 0.01
pids = 32
[ids]
first = 65536
ranges = 1
[cache]
hermetic = "off"
firewalled = "full"
archive = "1MiB"
total = "1GiB"
age = "1h"
servers = ["https://minio.example.com:9000/", "http://10.1.2.3/bucket"]
[[allow]]
name = "go"
host = "proxy.example.com"
ports = [443, 8443]
methods = ["GET"]
paths = ["/a/"]
[[allow]]
name = "all"
host = "*.example.org"
[git]
submodules = "off"
[[git.allow]]
name = "libs"
host = "git.example.org"
ports = [8443]
paths = ["/acme"]
[authority]
socket = "/x"
address = "attestd.example.com:8471"
unavailable = "spool"
`))
	if err != nil {
		t.Fatal(err)
	}
	got.Digest = ""
	want := Sandboxd{
		Socket: "/s", SocketUser: "1000", StateDir: "/a", RunDir: "/b",
		GitLabURL: &url.URL{Scheme: "http", Host: "127.0.0.1:8080", Path: "/gitlab"}, GitLabCA: "/ca",
		GitLabRunner: "/gr", HelperImage: "h", DefaultImage: "d", SourceMismatch: "declare", UnattestedArtifacts: "refuse", UpstreamCA: "/u",
		StopGrace: time.Minute, ReadOnlyRoot: true,
		Containerd: Containerd{Address: "/run/containerd/containerd.sock", BinDir: "/bin"},
		Images: Images{Allowed: []string{"registry.example.com/{a,b}/**"},
			PlainHTTP: []string{"localhost:5000", "[::1]:5000", "127.0.0.1"}, CA: "/i",
			AllowedServices: []string{"registry.example.com/services/**"}, AuthFile: "/etc/hallmark/registries.json",
			PullPolicy: []string{"always", "if-not-present"}, AllowedPullPolicies: []string{"always", "if-not-present", "never"},
			User: "1000:1000", AllowedUsers: []string{"1000:1000", "builder"}, DisableEntrypointOverwrite: true,
			PullsAtOnce: 2, KeepBytes: 1 << 40, KeepFor: 24 * time.Hour},
		Limits: Limits{Memory: 1 << 40, CPUs: 1.5, Pids: 64, Tmpfs: 1 << 20, OpenFiles: 64,
			MemorySwap: 2 << 40, MemoryReservation: 1 << 30, CPUShares: 512, CPUSet: "0-3,6", Disk: 64 << 20, Shm: 2 << 20,
			Ulimits: []string{"core=0", "memlock=1:unlimited"}, Preparing: 7,
			TmpfsMounts: []TmpfsMount{{Path: "/scratch", Size: 1 << 30, Exec: true}},
			Devices:     []Device{{Path: "/dev/kvm", Projects: []string{"g/**"}}},
			Projects:    []ProjectLimits{{Project: "g/*", Memory: 1 << 30, CPUs: 0.5, Pids: 64, Disk: 64 << 20, Shm: 1 << 20}},
		},
		IDs: IDs{First: 65536, Ranges: 1},
		Cache: Cache{Hermetic: "off", Firewalled: "full", Archive: 1 << 20, Total: 1 << 30, Age: time.Hour,
			Servers: []*url.URL{{Scheme: "https", Host: "minio.example.com:9000"}, {Scheme: "http", Host: "10.1.2.3", Path: "/bucket"}}},
		Services: Services{WaitTimeout: -time.Second, Memory: 64 << 20, CPUs: 0.01, Pids: 32},
		Allow: []AllowRule{
			{Name: "go", Host: "proxy.example.com", Ports: []int{443, 8443}, Methods: []string{"GET"}, Paths: []string{"/a/"}},
			{Name: "all", Host: "*.example.org"},
		},
		Git:       Git{Submodules: "off", Allow: []GitRule{{Name: "libs", Host: "git.example.org", Ports: []int{8443}, Paths: []string{"/acme"}}}},
		Authority: Authority{Socket: "/x", Address: "attestd.example.com:8471", Unavailable: "spool"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSandboxdRefuses puts one bad line into a file that is good otherwise.
func TestSandboxdRefuses(t *testing.T) {
	for _, tt := range []struct{ line, want, hint string }{
		{"sokcet = '/x'", `unknown key "sokcet"`, `did you mean "socket"?`},
		{"Socket = '/x'", `unknown key "Socket"`, `did you mean "socket"?`},
		{"Digest = 'x'", `unknown key "Digest"`, "known here: allow, authority, cache, containerd, default_image, git, gitlab_ca, gitlab_runner, gitlab_url, " +
			"helper_image, ids, images, limits, read_only_root, run_dir, services, socket, socket_user, source_mismatch, state_dir, stop_grace, unattested_artifacts, upstream_ca"},
		{"[limit]", `unknown key "limit"`, `did you mean "limits"?`},
		{"[limits]\nmemroy = '1GiB'", `unknown key "limits.memroy"`, `did you mean "limits.memory"?`},
		{"[[allow]]\nname='a'\nhost='a.example.com'\nport=1", `unknown key "allow[0].port"`, `did you mean "allow[0].ports"?`},
		{"[git]\nsubmodules = 'on'", `git.submodules: "on": want "same-gitlab" or "off"`, ""},
		{"[[git.allow]]\nname='a'\nhost='a.example.com'\nmethods=['GET']", `unknown key "git.allow[0].methods"`, "known in git.allow[0]: host, name, paths, ports"},
		{"[[git.allow]]\nname='a'\nhost='a.example.com'\n[[git.allow]]\nname='a'\nhost='b.example.com'", `git.allow[1].name: two rules are called "a"`, ""},
		{"[[git.allow]]\nname='a'\nhost='a.example.com'\n[[allow]]\nname='a'\nhost='b.example.com'", `git.allow[0].name: a rule of allow is called "a" too`, ""},
		{"socket = ''", "socket: must not be empty", "want an absolute path without . and .. parts"},
		{"socket = 'run/x'", `socket: "run/x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"socket = '/run/../x'", `socket: "/run/../x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"socket = 'unix:///run/x'", `socket: "unix:///run/x" is not a path`, "leave the scheme off"},
		{"socket = '/" + strings.Repeat("x", 107) + "'", "socket: 108 bytes: a unix socket's path has at most 107", ""},
		{"socket = \"/a\\u0000b\"", "socket: contains control characters", ""},
		{"socket_user = ''", "socket_user: must not be empty", ""},
		{"socket_user = 'a:b'", `socket_user: "a:b" is not a user`, "a name as in /etc/passwd, or a number"},
		{"socket_user = '-u'", `socket_user: "-u" is not a user`, "a name as in /etc/passwd, or a number"},
		{"state_dir = '/'", "state_dir: must not be the root directory", ""},
		{"state_dir = '/run/hallmark/sandboxd'", `state_dir: "/run/hallmark/sandboxd" and run_dir, "/run/hallmark/sandboxd", must lie apart`, ""},
		{"state_dir = '/run/hallmark'", `state_dir: "/run/hallmark" and run_dir, "/run/hallmark/sandboxd", must lie apart`, ""},
		{"run_dir = '/var/lib/hallmark/sandboxd/run'", `state_dir: "/var/lib/hallmark/sandboxd" and run_dir, "/var/lib/hallmark/sandboxd/run", must lie apart`, ""},
		{"gitlab_ca = 'ca.pem'", `gitlab_ca: "ca.pem" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"gitlab_runner = ''", "gitlab_runner: must not be empty", "want an absolute path without . and .. parts"},
		{"default_image = 'a b'", `default_image: "a b" is not an image's name`, "as registry.example.com/group/image@sha256:…"},
		{"default_image = 'https://r.example.com/a'", `default_image: "https://r.example.com/a" is not an image's name`, "leave the scheme off; for plain http see images.plain_http"},
		{"default_image = '--privileged'", `default_image: "--privileged" is not an image's name`, "as registry.example.com/group/image@sha256:…"},
		{"source_mismatch = 'refuze'", `source_mismatch: "refuze": want "refuse" or "declare"`, `did you mean "refuse"?`},
		{"unattested_artifacts = 'accep'", `unattested_artifacts: "accep": want "accept" or "refuse"`, `did you mean "accept"?`},
		{"source_mismatch = ''", `source_mismatch: "": want "refuse" or "declare"`, ""},
		{"upstream_ca = 'x'", `upstream_ca: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"stop_grace = 10", "stop_grace: want a duration, not a whole number", `write it with its unit, as "10s" or "5m"`},
		{"stop_grace = '0s'", "stop_grace: 0s is not between 1s and 1m40s", ""},
		{"stop_grace = '-5s'", "stop_grace: -5s is not between 1s and 1m40s", ""},
		{"stop_grace = '10m'", "stop_grace: 10m0s is not between 1s and 1m40s", ""},
		{"[containerd]\naddress = 'unix:///run/c.sock'", `containerd.address: "unix:///run/c.sock" is not a path`, "leave the scheme off"},
		{"[containerd]\nbin_dir = ''", "containerd.bin_dir: must not be empty", "want an absolute path without . and .. parts"},
		{"[images]\nallowed = 'x'", "images.allowed: want a list, not a string", "put it in [ ]"},
		{"[images]\nallowed = ['a', '[x']", `images.allowed[1]: "[x" is not a glob`, "* is anything within one part, ** any number of parts, {a,b} a choice"},
		{"[services]\nlimit = 65", "services.limit: 65 is not between 0 and 64", ""},
		{"[services]\nlimit = -1", "services.limit: -1 is not between 0 and 64", ""},
		{"[services]\nwait_timeout = '11m'", "services.wait_timeout: 11m0s is not between -1s and 10m0s", ""},
		{"[services]\nmemory = '1MiB'", "services.memory: 1MiB is not between 64MiB and 1024TiB", ""},
		{"[services]\ncpus = -1", "services.cpus: -1 is not between 0.01 and 4096", "0 means those of limits.cpus"},
		{"[services]\npids = 8", "services.pids: 8 is not between 32 and 4194304", ""},
		{"[images]\nallowed = ['']", `images.allowed[0]: "" is not a glob`, `as "registry.example.com/ci/**"`},
		{"[images]\nallowed = ['docker://a/**']", `images.allowed[0]: "docker://a/**" can match no image's name`, "leave the scheme off"},
		{"[images]\nallowed = ['a', 'a']", `images.allowed[1]: "a" is there twice`, ""},
		{"[images]\nplain_http = ['http://a']", `images.plain_http[0]: "http://a" is not host or host:port`, `as "registry.internal:5000"`},
		{"[images]\nplain_http = ['a:0']", `images.plain_http[0]: "a:0" is not host or host:port`, `as "registry.internal:5000"`},
		{"[images]\nplain_http = ['a/b']", `images.plain_http[0]: "a/b" is not host or host:port`, `as "registry.internal:5000"`},
		{"[images]\nplain_http = ['u@a']", `images.plain_http[0]: "u@a" is not host or host:port`, `as "registry.internal:5000"`},
		{"[images]\npull_policy = []", "images.pull_policy: must not be empty", `as pull_policy = ["always"]`},
		{"[images]\npull_policy = ['allways']", `images.pull_policy[0]: "allways": want "always" or "if-not-present" or "never"`, `did you mean "always"?`},
		{"[images]\nallowed_pull_policies = ['never']", "images.allowed_pull_policies: has none of images.pull_policy", "jobs that say nothing could not pull"},
		{"[images]\nallowed_services = ['[x']", `images.allowed_services[0]: "[x" is not a glob`, "* is anything within one part, ** any number of parts, {a,b} a choice"},
		{"[images]\nauth_file = 'x'", `images.auth_file: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"[images]\nallowed_users = ['a b']", `images.allowed_users: "a b" is not a user`, `as "1000:1000" or "builder"`},
		{"[images]\npulls_at_once = 0", "images.pulls_at_once: 0 is not between 1 and 256", ""},
		{"[images]\nkeep_for = '-1s'", "images.keep_for: -1s is not between 0s and 87600h0m0s", ""},
		{"[images]\nca = 'x'", `images.ca: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"[limits]\nmemory = 4294967296", "limits.memory: want a size, not a whole number", `write it with its unit, as "512MiB" or "4GiB"`},
		{"[limits]\nmemory = '4GB'", `limits.memory: "4GB" is not a size`, `write it with its unit, as "512MiB" or "4GiB"`},
		{"[limits]\nmemory = '0B'", "limits.memory: 0B is not between 64MiB and 1024TiB", ""},
		{"[limits]\nmemory = '256MiB'", "limits.memory: 256MiB is less than limits.tmpfs, 512MiB", "a tmpfs counts towards the memory limit"},
		{"[limits]\ntmpfs = '1B'", "limits.tmpfs: 1B is not between 1MiB and 1024TiB", ""},
		{"[limits]\ncpus = -1", "limits.cpus: -1 is not between 0.01 and 4096", "0 means all processors"},
		{"[limits]\ncpus = nan", "limits.cpus: NaN is not between 0.01 and 4096", "0 means all processors"},
		{"[limits]\ncpus = inf", "limits.cpus: +Inf is not between 0.01 and 4096", "0 means all processors"},
		{"[limits]\npids = 63", "limits.pids: 63 is not between 64 and 4194304", ""},
		{"[limits]\nopen_files = -1", "limits.open_files: -1 is out of range", ""},
		{"[limits]\nmemory_swap = '1GiB'", "limits.memory_swap: 1GiB is not between 4GiB and 1024TiB", ""},
		{"[limits]\nmemory_reservation = '5GiB'", "limits.memory_reservation: 5GiB is not between 0B and 4GiB", ""},
		{"[limits]\ncpu_shares = 1", "limits.cpu_shares: 1 is not between 2 and 262144", ""},
		{"[limits]\ncpuset = '0..3'", `limits.cpuset: "0..3" is not a list of processors`, `as "0-3,6"`},
		{"[limits]\ndisk = '1MiB'", "limits.disk: 1MiB is not between 64MiB and 16TiB", ""},
		{"[limits]\nshm = '0B'", "limits.shm: 0B is not between 1MiB and 1024TiB", ""},
		{"[limits]\npreparing = -1", "limits.preparing: -1 is not between 0 and 4096", ""},
		{"[limits]\nulimits = ['stack']", `limits.ulimits[0]: "stack" is not a ulimit`, `as "stack=8388608" or "memlock=65536:unlimited"`},
		{"[limits]\nulimits = ['nofile=5']", "limits.ulimits[0]: ulimit nofile: set limits.open_files", `as "stack=8388608" or "memlock=65536:unlimited"`},
		{"[limits]\nulimits = ['stack=5:4']", "limits.ulimits[0]: ulimit stack: the soft limit lies above the hard one", `as "stack=8388608" or "memlock=65536:unlimited"`},
		{"[limits]\nulimits = ['stack=-1']", `limits.ulimits[0]: ulimit stack: "-1" is not a number below 2^53, nor unlimited`, `as "stack=8388608" or "memlock=65536:unlimited"`},
		{"[[limits.tmpfs_mount]]\npath = '/builds/x'\nsize = '1MiB'", `limits.tmpfs_mount[0].path: "/builds/x": /builds is the sandbox's own`, ""},
		{"[[limits.tmpfs_mount]]\npath = '/x'", "limits.tmpfs_mount[0].size: required, but missing", `as size = "1GiB"`},
		{"[[limits.tmpfs_mount]]\npath = '/x'\nsize = '1MiB'\n[[limits.tmpfs_mount]]\npath = '/x'\nsize = '1MiB'", `limits.tmpfs_mount[1].path: "/x" is there twice`, ""},
		{"[[limits.device]]\npath = '/dev/mem'", `limits.device[0].path: "/dev/mem": memory, disks, terminals and what makes devices are never a job's`, ""},
		{"[[limits.device]]\npath = '/dev/sda1'", `limits.device[0].path: "/dev/sda1": memory, disks, terminals and what makes devices are never a job's`, ""},
		{"[[limits.device]]\npath = 'kvm'", `limits.device[0].path: "kvm" is not a path below /dev`, `as "/dev/kvm"`},
		{"[[limits.device]]\npath = '/dev/kvm'\n[[limits.device]]\npath = '/dev/kvm'", `limits.device[1].path: "/dev/kvm" is there twice`, "name all projects in one place"},
		{"[[limits.project]]\nmemory = '1GiB'", "limits.project[0].project: required, but missing", `as project = "group/**"`},
		{"[[limits.project]]\nproject = 'g/**'\nmemory = '8GiB'", "limits.project[0].memory: 8GiB is not between 64MiB and 4GiB", ""},
		{"[limits]\ncpus = 2\n[[limits.project]]\nproject = 'g/**'\ncpus = 3", "limits.project[0].cpus: 3 is more than limits.cpus, 2", "a project can only have less than the others"},
		{"[[limits.project]]\nproject = 'g/**'\npids = 5000", "limits.project[0].pids: 5000 is not between 64 and 4096", ""},
		{"[[limits.project]]\nproject = 'g/**'\ndisk = '33GiB'", "limits.project[0].disk: 33GiB is not between 64MiB and 32GiB", ""},
		{"[[limits.project]]\nproject = 'g/**'\nshm = '1GiB'", "limits.project[0].shm: 1GiB is not between 1MiB and 512MiB", ""},
		{"[limits]\nopen_files = 3", "limits.open_files: 3 is not between 64 and 1073741824", ""},
		{"[ids]\nfirst = 0", "ids.first: 0 lies among the host's own ids, 0 to 65535", "take a range that no account and no other container runtime uses"},
		{"[ids]\nfirst = 65535", "ids.first: 65535 lies among the host's own ids, 0 to 65535", "take a range that no account and no other container runtime uses"},
		{"[ids]\nfirst = 4294967296", "ids.first: 4294967296 is out of range", ""},
		{"[ids]\nfirst = 4294900000\nranges = 2", "ids.ranges: 2 ranges of 65536 from 4294900000 end at 4295031071, after the last id, 4294967294", ""},
		{"[cache]\nhermetic = 'on'", `cache.hermetic: "on": want "off" or "own" or "full"`, `did you mean "own"?`},
		{"[cache]\nfirewalled = ''", `cache.firewalled: "": want "off" or "own" or "full"`, ""},
		{"[cache]\narchive = '1B'", "cache.archive: 1B is not between 1MiB and 1TiB", ""},
		{"[cache]\ntotal = '1GiB'", "cache.total: 1GiB is less than cache.archive, 2GiB", "one archive must fit into the whole"},
		{"[cache]\nservers = ['minio:9000']", `cache.servers[0]: "minio:9000": want an absolute http or https URL`, `as "https://minio.example.com:9000" or "https://storage.googleapis.com/bucket"`},
		{"[cache]\nservers = ['https://u:p@minio']", `cache.servers[0]: "https://u:xxxxx@minio": has a user or password in it`, `as "https://minio.example.com:9000" or "https://storage.googleapis.com/bucket"`},
		{"[cache]\nservers = ['https://minio/a%2fb']", `cache.servers[0]: "https://minio/a%2fb": has a path with empty, escaped, . or .. parts`, `as "https://minio.example.com:9000" or "https://storage.googleapis.com/bucket"`},
		{"[cache]\nservers = ['https://minio', 'https://minio/']", `cache.servers[1]: "https://minio" is there twice`, ""},
		{"[cache]\nservers = ['http://127.0.0.1:9000']", `cache.servers[0]: "http://127.0.0.1:9000": in the job's network 127.0.0.1 is the job itself`, "give it a name or an address that is not the machine's own loopback, in the runner's config.toml too"},
		{"[cache]\nage = '1m'", "cache.age: 1m0s is not between 1h0m0s and 87600h0m0s", ""},
		{"[ids]\nranges = 0", "ids.ranges: 0 is not between 1 and 65535", ""},
		{"[ids]\nranges = -1", "ids.ranges: -1 is not between 1 and 65535", ""},
		{"[authority]\nsocket = 'x'", `authority.socket: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			_, err := ParseSandboxd("s.toml", []byte(minimalSandboxd+tt.line+"\n"))
			checkOnly(t, err, tt.want, tt.hint)
		})
	}
}

func TestRuleRefused(t *testing.T) {
	const hostHint = `as "proxy.example.com" or "*.example.com"`
	const pathHint = `a prefix, as "/group/project/"`
	for _, tt := range []struct{ line, want, hint string }{
		{"host='a.example.com'", "allow[0].name: required, but missing", `the record calls the rule so, as name = "go-proxy"`},
		{"name='A'\nhost='a.example.com'", `allow[0].name: "A" is not a rule's name`, "letters in lower case, digits, - _ and ."},
		{"name='a'", "allow[0].host: required, but missing", hostHint},
		{"name='a'\nhost=''", "allow[0].host: must not be empty", hostHint},
		{"name='a'\nhost='A.example.com'", `allow[0].host: "A.example.com" is not in lower case`, `write it as "a.example.com"`},
		{"name='a'\nhost='*.Example.com'", `allow[0].host: "*.Example.com" is not in lower case`, `write it as "*.example.com"`},
		{"name='a'\nhost='*'", `allow[0].host: "*" is not a host`, hostHint},
		{"name='a'\nhost='*.com'", `allow[0].host: "*.com" would allow a whole top-level domain`, hostHint},
		{"name='a'\nhost='a.*.com'", `allow[0].host: "a.*.com" is not a host`, hostHint},
		{"name='a'\nhost='*example.com'", `allow[0].host: "*example.com" is not a host`, hostHint},
		{"name='a'\nhost='https://a.example.com'", `allow[0].host: "https://a.example.com" is not a host`, hostHint},
		{"name='a'\nhost='a.example.com:443'", `allow[0].host: "a.example.com:443" is not a host`, hostHint},
		{"name='a'\nhost='a.example.com.'", `allow[0].host: "a.example.com." is not a host`, hostHint},
		{"name='a'\nhost='a..com'", `allow[0].host: "a..com" is not a host`, hostHint},
		{"name='a'\nhost='bücher.example.com'", `allow[0].host: "bücher.example.com" is not a host`, hostHint},
		{"name='a'\nhost='10.0.0.1'", `allow[0].host: "10.0.0.1" is an address`, "name the host: an address says nothing of whose it is"},
		{"name='a'\nhost='[::1]'", `allow[0].host: "[::1]" is an address`, "name the host: an address says nothing of whose it is"},
		{"name='a'\nhost='0x7f.1'", `allow[0].host: "0x7f.1" is not a host`, hostHint},
		{"name='a'\nhost='a.example.com'\nports=[0]", "allow[0].ports[0]: 0 is not between 1 and 65535", ""},
		{"name='a'\nhost='a.example.com'\nports=[443, 65536]", "allow[0].ports[1]: 65536 is not between 1 and 65535", ""},
		{"name='a'\nhost='a.example.com'\nmethods=['get']", `allow[0].methods[0]: "get" is not in upper case`, `write it as "GET"`},
		{"name='a'\nhost='a.example.com'\nmethods=['CONNECT']", `allow[0].methods[0]: "CONNECT" cannot be allowed`, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, PROPFIND, REPORT"},
		{"name='a'\nhost='a.example.com'\npaths=['a']", `allow[0].paths[0]: "a" is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\npaths=['/a/../b']", `allow[0].paths[0]: "/a/../b" is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\npaths=['/a/..']", `allow[0].paths[0]: "/a/.." is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\npaths=['/a%2f']", `allow[0].paths[0]: "/a%2f" is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\npaths=['/a/*']", `allow[0].paths[0]: "/a/*" is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\npaths=['/a?b']", `allow[0].paths[0]: "/a?b" is not a plain path`, pathHint},
		{"name='a'\nhost='a.example.com'\n[[allow]]\nname='a'\nhost='b.example.com'", `allow[1].name: two rules are called "a"`, ""},
	} {
		t.Run(tt.line, func(t *testing.T) {
			_, err := ParseSandboxd("s.toml", []byte(minimalSandboxd+"[[allow]]\n"+tt.line+"\n"))
			checkOnly(t, err, tt.want, tt.hint)
		})
	}
}

func TestURLRefused(t *testing.T) {
	for _, tt := range []struct{ url, want, hint string }{
		{"gitlab.example.com", `"gitlab.example.com": want an absolute http or https URL`, "as https://gitlab.example.com"},
		{"ssh://gitlab.example.com", `"ssh://gitlab.example.com": want an absolute http or https URL`, "as https://gitlab.example.com"},
		{"https:gitlab.example.com", `"https:gitlab.example.com": has no host`, ""},
		{"https://", `"https:": has no host`, ""},
		{"https:///x", `"https:///x": has no host`, ""},
		{"https://u:secret@gitlab.example.com", `"https://u:xxxxx@gitlab.example.com": has a user or password in it`, "credentials do not belong here"},
		{"https://gitlab.example.com?x=1", `"https://gitlab.example.com?x=1": has a query or a fragment`, "leave off everything from ? or # on"},
		{"https://gitlab.example.com?", `"https://gitlab.example.com?": has a query or a fragment`, "leave off everything from ? or # on"},
		{"https://gitlab.example.com/#x", `"https://gitlab.example.com/#x": has a query or a fragment`, "leave off everything from ? or # on"},
		{"https://gitlab.example.com/a/../b", `"https://gitlab.example.com/a/../b": has a path with empty, escaped, . or .. parts`, "leave the path off, unless GitLab lives under one"},
		{"https://gitlab.example.com//", `"https://gitlab.example.com//": has a path with empty, escaped, . or .. parts`, "leave the path off, unless GitLab lives under one"},
		{"https://gitlab.example.com/a%2fb", `"https://gitlab.example.com/a%2fb": has a path with empty, escaped, . or .. parts`, "leave the path off, unless GitLab lives under one"},
		{"https://gitlab.example.com/ä", `"https://gitlab.example.com/%C3%A4": has blanks or letters beyond ASCII in its path`, ""},
		{"https://gitlab.example.com:0", `"https://gitlab.example.com:0": has a bad port`, "1 to 65535"},
		{"https://gitlab.example.com:", `"https://gitlab.example.com:": has a bad port`, "1 to 65535"},
		{"https://gitlab.example.com:070", `"https://gitlab.example.com:070": has a bad port`, "1 to 65535"},
		{"https://GitLab.example.com", `"https://GitLab.example.com": has a bad host name`, "a name in lower case, or an IP address"},
		{"https://gitlab_.example.com.", `"https://gitlab_.example.com.": has a bad host name`, "a name in lower case, or an IP address"},
	} {
		t.Run(tt.url, func(t *testing.T) {
			for _, key := range []string{"gitlab_url", "builder_uri"} {
				text := strings.Replace(minimalAttestd, map[string]string{
					"gitlab_url":  "'https://gitlab.example.com'",
					"builder_uri": "'https://ci.example.com/hallmark'",
				}[key], "'"+tt.url+"'", 1)
				_, err := ParseAttestd("a.toml", []byte(text))
				checkOnly(t, err, key+": "+tt.want, tt.hint)
			}
		})
	}
}

func TestAttestdRefuses(t *testing.T) {
	for _, tt := range []struct{ line, want, hint string }{
		{"host = ['root']", `unknown key "host"`, `did you mean "hosts"?`},
		{"hosts = 'root'", "hosts: want a list, not a string", "put it in [ ]"},
		{"hosts = []", "hosts: must not be empty", `["root"] is the default`},
		{"hosts = ['root', 'root']", `hosts[1]: "root" is there twice`, ""},
		{"hosts = ['*']", `hosts[0]: "*" is not a user`, "a name as in /etc/passwd, or a number"},
		{"http = '8470'", `http: "8470" is not host:port`, `as "127.0.0.1:8470"`},
		{"http = ''", `http: "" is not host:port`, `as "127.0.0.1:8470"`},
		{"http = '127.0.0.1:99999'", `http: "127.0.0.1:99999" has a bad port`, `as "127.0.0.1:8470"`},
		{"http = '127.0.0.1:'", `http: "127.0.0.1:" has a bad port`, `as "127.0.0.1:8470"`},
		{"http = 'a b:1'", `http: "a b:1" has a bad host`, `as "127.0.0.1:8470"`},
		{"public_url = 'https://a.example.com/'", `public_url: "https://a.example.com/" ends with a slash`, "leave the slash at the end off"},
		{"issuer = 'hallmark'", `issuer: "hallmark": want an absolute http or https URL`, "as https://gitlab.example.com"},
		{"issuer = 'HTTPS://ci.example.com'", `issuer: "HTTPS://ci.example.com" is not in its plain form`, `write it as "https://ci.example.com"`},
		{"state_dir = 'x'", `state_dir: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"socket = ''", "socket: must not be empty", "want an absolute path without . and .. parts"},
		{"gitlab_ca = 'x'", `gitlab_ca: "x" is not a clean absolute path`, "want an absolute path without . and .. parts"},
		{"listen = '8471'", `listen: "8471" is not host:port`, `as "127.0.0.1:8470"`},
		{"server_names = ['A.example.com']", `server_names[0]: "A.example.com" is not a host`, "a name in lower case, or an IP address"},
		{"gitlab_unavailable = 'spol'", `gitlab_unavailable: "spol": want "fail" or "spool"`, `did you mean "spool"?`},
		{"id_token_audience = 'a b'", `id_token_audience: "a b" has blanks or letters beyond ASCII, or is too long`, ""},
		{"[keys]\nca = 'ca.pem'", `keys.ca: "ca.pem" is not a key's URI`, `as "file:///etc/hallmark/ca.pem", "pkcs11:token=…;object=…" or "awskms:///…"`},
		{"[keys]\nlog = 'file://host/x'", `keys.log: "file://host/x" names no file by a clean absolute path`, `as "file:///etc/hallmark/ca.pem", "pkcs11:token=…;object=…" or "awskms:///…"`},
		{"[timestamp]\nurl = 'https://tsa.example.com'", "trusted_root: required, but missing", "services that are named by URL are believed by what it says"},
		{"[log]\nkind = 'rekor '", `log.kind: "rekor ": want "built-in" or "rekor" or "none"`, `did you mean "rekor"?`},
		{"[log]\nurl = 'https://rekor.example.com'", `log.url: a log of kind "built-in" has no URL`, `set kind = "rekor"`},
		{"[log]\nkind = 'none'\nwitness_policy = '/w'", "log.witness_policy: only the built-in log asks witnesses", "a Rekor has witnesses of its own"},
		{"[log]\nbackground = ['hermetic', 'hermetic']", `log.background[1]: "hermetic" is there twice`, ""},
		{"[store]\nbucket = 'b'", "store.bucket: the embedded store keeps bundles itself", "set store.database, or leave the bucket off"},
		{"[log]\nkind = 'none'\n[store]\ndatabase = 'mysql://x'\nbucket = 'b'\nendpoint = 'https://s3.example.com'\ncredentials_file = '/c'", "store.database: not the URL of a PostgreSQL", `as "postgres://hallmark@db.example.com/hallmark?sslmode=verify-full"`},
		{"[log]\nkind = 'none'\n[store]\ndatabase = 'postgres://u:p@h/d'\nbucket = 'b'\nendpoint = 'https://s3.example.com'\ncredentials_file = '/c'", "store.database: has a password in it", "put it in a file, and its name in database_password_file"},
		{"[log]\nkind = 'built-in'\n[store]\ndatabase = 'postgres://u@h/d'\nbucket = 'b'\nendpoint = 'https://s3.example.com'\ncredentials_file = '/c'", "log.kind: replicas that share a database would each keep a log of their own", `set kind = "rekor", a log that all use, or "none"`},
		{"[limits]\ncalls = 0", "limits.calls: 0 is not between 1 and 4096", ""},
	} {
		t.Run(tt.line, func(t *testing.T) {
			_, err := ParseAttestd("a.toml", []byte(minimalAttestd+tt.line+"\n"))
			checkOnly(t, err, tt.want, tt.hint)
		})
	}
}

func TestRequired(t *testing.T) {
	_, err := ParseSandboxd("s.toml", nil)
	want := "s.toml: gitlab_url: required, but missing\ns.toml: helper_image: required, but missing"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	_, err = ParseAttestd("a.toml", []byte("builder_uri = ''"))
	want = "a.toml:1:15: builder_uri: must not be empty\na.toml: gitlab_url: required, but missing"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	// What a service by URL needs besides.
	_, err = ParseAttestd("a.toml", []byte(minimalAttestd+"[fulcio]\nurl = 'https://fulcio.example.com'\n[store]\ndatabase = 'postgres://h/d'\n"))
	for _, key := range []string{"trusted_root", "fulcio.token_file", "fulcio.identity", "fulcio.identity_issuer", "store.bucket", "store.endpoint", "store.credentials_file"} {
		if err == nil || !strings.Contains(err.Error(), key+": required, but missing") {
			t.Errorf("%s is not asked for: %v", key, err)
		}
	}
}

// checkOnly expects exactly one problem, at a place in the file unless
// something is missing from it.
func checkOnly(t *testing.T, err error, want, hint string) {
	t.Helper()
	var all Errors
	if !errors.As(err, &all) {
		t.Fatalf("got %v, want Errors", err)
	}
	if len(all) != 1 {
		t.Errorf("got %d problems:\n%v", len(all), all)
	}
	e := all[0]
	if e.Msg != want || e.Hint != hint {
		t.Errorf("got  %s\nhint %s\nwant %s\nhint %s", e.Msg, e.Hint, want, hint)
	}
	if e.Line == 0 && !strings.Contains(want, "missing") && !strings.Contains(want, "apart") {
		t.Errorf("%s: no place", e)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for kind, text := range map[Kind]string{KindSandboxd: minimalSandboxd, KindAttestd: minimalAttestd} {
		file := filepath.Join(dir, string(kind)+".toml")
		if err := Check(kind, file); err == nil {
			t.Errorf("%s: a file that is not there was read", kind)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(kind, file); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if err := Check("other", filepath.Join(dir, "sandboxd.toml")); err == nil {
		t.Error("an unknown kind was checked")
	}
}

// TestExampleIsTheDefault parses each example as it is shown to people and
// compares it with what the program does without it.
func TestExampleIsTheDefault(t *testing.T) {
	got, err := ParseSandboxd("sandboxd.toml", []byte(Example(KindSandboxd)))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultSandboxd()
	want.GitLabURL, want.HelperImage, want.Digest = got.GitLabURL, got.HelperImage, got.Digest
	want.Images.Allowed, want.Images.PlainHTTP = []string{}, []string{}
	want.Limits.Ulimits, want.Cache.Servers = []string{}, []*url.URL{}
	want.Images.AllowedServices, want.Images.AllowedPullPolicies, want.Images.AllowedUsers = []string{}, []string{}, []string{}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	gotA, err := ParseAttestd("attestd.toml", []byte(Example(KindAttestd)))
	if err != nil {
		t.Fatal(err)
	}
	wantA := DefaultAttestd()
	wantA.GitLabURL, wantA.BuilderURI, wantA.Issuer, wantA.Digest = gotA.GitLabURL, gotA.BuilderURI, gotA.BuilderURI, gotA.Digest
	wantA.IDTokenAudience, wantA.ServerNames, wantA.Log.Background = gotA.BuilderURI, []string{}, []string{}
	if diff := cmp.Diff(wantA, gotA); diff != "" {
		t.Error(diff)
	}
}

// TestExampleNamesEveryField keeps the examples complete, and each setting
// explained.
func TestExampleNamesEveryField(t *testing.T) {
	for kind, v := range map[Kind]any{KindSandboxd: Sandboxd{}, KindAttestd: Attestd{}} {
		text := Example(kind)
		for _, key := range keys(reflect.TypeOf(v)) {
			if !regexp.MustCompile(`(?m)^#?(\[+([a-z]+\.)?` + key + `\]+$|` + key + ` = )`).MatchString(text) {
				t.Errorf("%s: %s is not in the example", kind, key)
			}
		}
	}
	if Example("other") != "" {
		t.Error("an example for an unknown kind")
	}
}

func keys(typ reflect.Type) []string {
	var list []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ",")
		if name == "" {
			continue
		}
		list = append(list, name)
		inner := typ.Field(i).Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			list = append(list, keys(inner)...)
		}
	}
	return list
}

// TestDocuments reads the settings that documents tell people to make.
func TestDocuments(t *testing.T) {
	for name, parse := range map[string]func(b document.Block) error{
		"attestd": func(b document.Block) error {
			_, err := ParseAttestd(b.Document, []byte(minimalAttestd+b.Text))
			return err
		},
		"sandboxd": func(b document.Block) error {
			_, err := ParseSandboxd(b.Document, []byte(minimalSandboxd+b.Text))
			return err
		},
	} {
		blocks, err := document.Marked("..", "config", name)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range blocks {
			if err := parse(b); err != nil {
				t.Errorf("%s: %v\n%s", b.Document, err, b.Text)
			}
		}
	}
}

// TestExampleAllowRule takes the comment marks off the example's rule.
func TestExampleAllowRule(t *testing.T) {
	var text strings.Builder
	lines := bufio.NewScanner(strings.NewReader(Example(KindSandboxd)))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") && line != "#" {
			line = line[1:]
		}
		text.WriteString(line + "\n")
	}
	cfg, err := ParseSandboxd("sandboxd.toml", []byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	want := []AllowRule{{Name: "go-proxy", Host: "proxy.example.com", Ports: []int{443}, Methods: []string{"GET", "HEAD"}, Paths: []string{"/"}}}
	if diff := cmp.Diff(want, cfg.Allow); diff != "" {
		t.Error(diff)
	}
}

// TestFieldsAreDocumented holds the package comment's promise: each field says
// what its default is, or that it is required, and each field or its type says
// what trust it carries.
func TestFieldsAreDocumented(t *testing.T) {
	for _, file := range []string{"sandboxd.go", "attestd.go"} {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range tree.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.TYPE {
				continue
			}
			spec := gen.Specs[0].(*ast.TypeSpec)
			trusted := trust.MatchString(flat(gen.Doc))
			for _, f := range spec.Type.(*ast.StructType).Fields.List {
				name, doc := f.Names[0].Name, flat(f.Doc)
				if f.Tag == nil || doc == "" && trusted || name == "Containerd" || isSection(f) {
					continue
				}
				if !strings.Contains(strings.ToLower(doc), "default") && !strings.Contains(doc, "required") {
					t.Errorf("%s.%s: neither a default nor required", spec.Name, name)
				}
				if !trusted && !trust.MatchString(doc) {
					t.Errorf("%s.%s: nothing about trust", spec.Name, name)
				}
			}
		}
	}
}

var trust = regexp.MustCompile(`(?i)a (writer|reader) of|whoever is on|what holds for`)

func flat(doc *ast.CommentGroup) string { return strings.Join(strings.Fields(doc.Text()), " ") }

// isSection tells a field that is a table of its own, documented at its type.
func isSection(f *ast.Field) bool {
	switch typ := f.Type.(type) {
	case *ast.Ident:
		return ast.IsExported(typ.Name)
	case *ast.ArrayType:
		elem, ok := typ.Elt.(*ast.Ident)
		return ok && ast.IsExported(elem.Name)
	}
	return false
}

func FuzzSandboxd(f *testing.F) {
	f.Add(Example(KindSandboxd))
	f.Add(minimalSandboxd + "[[allow]]\nname='a'\nhost='*.a.example.com'\n")
	f.Fuzz(func(t *testing.T, text string) {
		cfg, err := ParseSandboxd("s.toml", []byte(text))
		if err != nil {
			return
		}
		if cfg.GitLabURL == nil || cfg.GitLabURL.Host == "" || cfg.HelperImage == "" || cfg.IDs.First < IDRange ||
			uint64(cfg.IDs.First)+uint64(cfg.IDs.Ranges)*IDRange > 1<<32-1 || cfg.Limits.Memory <= 0 {
			t.Errorf("accepted %+v", cfg)
		}
	})
}
