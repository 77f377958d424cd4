package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/policy"
)

func TestDerivedNames(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("1", 64)
	for _, suffix := range []string{"", ":16", ":16" + digest, digest} {
		for image, want := range map[string][]string{
			"service":                           {"service"},
			"namespace/service":                 {"namespace__service", "namespace-service"},
			"domain.tld/service":                {"domain.tld__service", "domain.tld-service"},
			"domain.tld:8080/service":           {"domain.tld__service", "domain.tld-service"},
			"domain.tld:8080/namespace/service": {"domain.tld__namespace__service", "domain.tld-namespace-service"},
			"localhost:5000/a/b/c":              {"localhost__a__b__c", "localhost-a-b-c"},
		} {
			if diff := cmp.Diff(want, derivedNames(image+suffix)); diff != "" {
				t.Errorf("%s: %s", image+suffix, diff)
			}
		}
	}
}

func serviceHost(limit int) *Host {
	gitlab := &url.URL{Scheme: "https", Host: "gitlab.example.com:8443"}
	return &Host{cfg: Config{GitLab: gitlab, Services: ServiceRules{Limit: limit},
		Allow: []policy.Rule{{Name: "npm", Host: "registry.example.org"}, {Name: "below", Host: "*.mirror.example.org"}}}}
}

func TestPlanServices(t *testing.T) {
	job := &executor.Job{ID: 7, Services: []executor.Image{
		{Name: "postgres:16", Alias: "DB, db.local"},
		{Name: "redis"},
		{Name: "redis:7", Alias: "redis cache"},
		{Name: "redis@sha256:" + strings.Repeat("1", 64)},
		{Name: "r.example.com/" + strings.Repeat("long/", 20) + "x", Alias: "x"},
	}}
	list, warnings, err := serviceHost(5).planServices(job, sandbox.Firewalled)
	if err != nil {
		t.Fatal(err)
	}
	got := map[sandbox.Role][]string{}
	for _, s := range list {
		got[s.role] = s.names
	}
	want := map[sandbox.Role][]string{
		"service0": {"postgres", "db", "db.local"}, "service1": {"redis"}, "service2": {"cache"}, "service4": {"x"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(warnings) != 3 || !strings.Contains(warnings[2], "is not run") {
		t.Errorf("%q", warnings)
	}
}

func TestServicesThatAJobCannotHave(t *testing.T) {
	var aliases strings.Builder // 3 MB, as a payload can have
	for i := range 1 << 19 {
		fmt.Fprintf(&aliases, "a%x ", i)
	}
	for name, c := range map[string]struct {
		alias, says string
		hermetic    bool // allowed there
	}{
		"this machine":       {"localhost", "the machine's own", false},
		"below this machine": {"a.localhost", "the machine's own", false},
		"the job":            {"job-7", "the job's own", false},
		"GitLab":             {"GitLab.example.com", "GitLab's", false},
		"an allowed host":    {"registry.example.org", "rule npm", true},
		"below one":          {"a.mirror.example.org", "rule below", true},
		"an address":         {"10.0.0.1", "no host name", false},
		"a number":           {"2130706433", "no host name", false},
		"a number in hex":    {"0x7f000001", "no host name", false},
		"a path":             {"a/b", "no host name", false},
		"a NUL":              {"a\x00b", "no host name", false},
		"not ASCII":          {"bücher", "no host name", false},
		"a comment":          {"a#b", "no host name", false},
		"an empty label":     {"a..b", "no host name", false},
		"rooted":             {"a.", "no host name", false},
		"too long":           {strings.Repeat("a", 64), "no host name", false},
		"too many":           {aliases.String(), "524288 aliases", false},
	} {
		job := &executor.Job{ID: 7, Services: []executor.Image{{Name: "redis", Alias: c.alias}}}
		for _, profile := range []sandbox.Profile{sandbox.Hermetic, sandbox.Firewalled} {
			_, _, err := serviceHost(5).planServices(job, profile)
			if c.hermetic && profile == sandbox.Hermetic {
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if user, ok := errors.AsType[*sandbox.UserError](err); !ok || !strings.Contains(err.Error(), c.says) || user.Hint == "" {
				t.Errorf("%s: %v, want %q", name, err, c.says)
			}
		}
	}
	many := &executor.Job{Services: make([]executor.Image, 3)}
	if _, _, err := serviceHost(2).planServices(many, sandbox.Hermetic); err == nil || err.Error() != "too many services requested: 3, only 2 allowed" {
		t.Error(err)
	}
	if _, _, err := serviceHost(0).planServices(&executor.Job{}, sandbox.Hermetic); err != nil {
		t.Error(err)
	}
}

func TestServiceCommandIsPutTogetherAsDockerDoes(t *testing.T) {
	image := containerd.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	for name, c := range map[string]struct {
		image               containerd.ImageConfig
		entrypoint, command []string
		want                string
	}{
		"the image's":                     {image, nil, nil, "/entry serve"},
		"command":                         {image, nil, []string{"a", "b"}, "/entry a b"},
		"entrypoint drops the command":    {image, []string{"/own"}, nil, "/own"},
		"both":                            {image, []string{"/own", "x"}, []string{"a"}, "/own x a"},
		"no entrypoint":                   {image, []string{""}, []string{"a"}, "a"},
		"no entrypoint and no command":    {image, []string{""}, nil, ""},
		"empty lists are none":            {image, []string{}, []string{}, "/entry serve"},
		"image without entrypoint":        {containerd.ImageConfig{Cmd: []string{"c"}}, nil, nil, "c"},
		"image with an empty entrypoint":  {containerd.ImageConfig{Entrypoint: []string{""}, Cmd: []string{"c"}}, nil, nil, "c"},
		"image with nothing":              {containerd.ImageConfig{}, nil, nil, ""},
		"image with nothing, and command": {containerd.ImageConfig{}, nil, []string{"x"}, "x"},
	} {
		got := strings.Join(serviceCommand(c.image, executor.Image{Entrypoint: c.entrypoint, Command: c.command}), " ")
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestMergedEnvironment(t *testing.T) {
	got := merged([]string{"A=1", "B=2", "PATH=/bin"}, []string{"B=3", "=x", "C=a=b", "N=\x00", "A="})
	if diff := cmp.Diff([]string{"A=", "B=3", "PATH=/bin", "C=a=b"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestExpectedPorts(t *testing.T) {
	words := func(list ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, w := range list {
			m[w] = struct{}{}
		}
		return m
	}
	var many []string
	for p := 100; p > 50; p-- {
		many = append(many, portList([]int{p})+"/tcp")
	}
	ranges := map[string]struct{}{}
	for i := range 1 << 17 {
		ranges[fmt.Sprintf("%0*d-65535", 1+i%9, 1+i/9)] = struct{}{}
	}
	for name, c := range map[string]struct {
		env     []string
		exposed map[string]struct{}
		want    []int
	}{
		"none":           {nil, nil, nil},
		"in order":       {nil, words("8080/tcp", "53/udp", "80", "9/sctp"), []int{80, 8080}},
		"range":          {nil, words("7000-7002/tcp", "9-7/tcp"), []int{7000, 7001, 7002}},
		"nonsense":       {nil, words("0/tcp", "x/tcp", "65536/tcp", "/tcp", "-/tcp", ""), nil},
		"override":       {[]string{"HEALTHCHECK_TCP_PORT=99"}, words("80/tcp"), []int{99}},
		"in any case":    {[]string{"A=1", "healthcheck_tcp_port=99"}, nil, []int{99}},
		"first twenty":   {nil, words(many...), []int{51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70}},
		"of many ranges": {nil, ranges, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}},
		"another's name": {[]string{"XHEALTHCHECK_TCP_PORT=99"}, nil, nil},
	} {
		got, err := expectedPorts(c.env, c.exposed)
		if err != nil || len(got)+len(c.want) > 0 && !cmp.Equal(c.want, got) {
			t.Errorf("%s: %v %v, want %v", name, got, err, c.want)
		}
	}
	for _, bad := range []string{"", "0", "x", "65536", "-1", "80 "} {
		if _, err := expectedPorts([]string{"HEALTHCHECK_TCP_PORT=" + bad}, nil); err == nil {
			t.Errorf("port %q is taken", bad)
		}
	}
}

func TestLimitsOfServices(t *testing.T) {
	job := sandbox.Limits{MemoryBytes: 100, SwapBytes: 7, ReservationBytes: 60, CPUs: 2, Pids: 50, TmpfsBytes: 30, ShmBytes: 35, OpenFiles: 9}
	more := sandbox.Limits{MemoryBytes: 200, CPUs: 4, Pids: 70}
	for name, c := range map[string]struct {
		own     sandbox.Limits
		lowered []string
		want    sandbox.Limits
	}{
		"none":         {want: job},
		"memory":       {own: sandbox.Limits{MemoryBytes: 20}, want: changedLimits(job, func(l *sandbox.Limits) { l.MemoryBytes, l.ReservationBytes, l.TmpfsBytes, l.ShmBytes = 20, 20, 20, 20 })},
		"all":          {own: sandbox.Limits{MemoryBytes: 80, CPUs: 1, Pids: 70}, want: changedLimits(job, func(l *sandbox.Limits) { l.MemoryBytes, l.CPUs, l.Pids = 80, 1, 70 })},
		"more":         {own: more, want: changedLimits(job, func(l *sandbox.Limits) { l.MemoryBytes, l.CPUs, l.Pids = 200, 4, 70 })},
		"memory taken": {own: more, lowered: []string{"memory"}, want: changedLimits(job, func(l *sandbox.Limits) { l.CPUs, l.Pids = 4, 70 })},
		"all taken":    {own: more, lowered: []string{"memory", "cpus", "pids"}, want: job},
		"less anyway":  {own: sandbox.Limits{CPUs: 1}, lowered: []string{"cpus"}, want: changedLimits(job, func(l *sandbox.Limits) { l.CPUs = 1 })},
	} {
		b := bounds{Limits: job, setBy: map[string]string{}}
		for _, limit := range c.lowered {
			b.setBy[limit] = "by somebody"
		}
		if diff := cmp.Diff(c.want, b.ofService("service-0", c.own)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func changedLimits(l sandbox.Limits, change func(*sandbox.Limits)) sandbox.Limits {
	change(&l)
	return l
}

func TestCollisionsAreExplained(t *testing.T) {
	lines := collisions([]*service{
		{names: []string{"a"}, ports: []int{5432}}, {names: []string{"b"}, ports: []int{5432, 80}}, {names: []string{"c"}, ports: []int{3128}}, {names: []string{"d"}},
	})
	if len(lines) != 2 || !strings.Contains(lines[0], "Services a and b both want port 5432") || !strings.Contains(lines[1], "Service c cannot listen on port 3128") {
		t.Errorf("%q", lines)
	}
}

func TestServiceLogKeepsTheEnd(t *testing.T) {
	l := &serviceLog{source: "db", mask: maskOf([]string{"secret", "secret-of-all", ""}), news: &serviceNews{}}
	l.read(strings.NewReader("first\n" + strings.Repeat("line\n", tailLines) + "a secret-of-all and secret\r\n" + "no end"))
	last := l.last()
	if len(last) != tailLines || !strings.HasSuffix(last[tailLines-1], " no end") || !strings.HasSuffix(last[tailLines-2], " a [MASKED] and [MASKED]") {
		t.Errorf("%d lines: %q", len(last), last[max(0, len(last)-2):])
	}
	// A line of any length is bounded work, and shown in pieces.
	l = &serviceLog{mask: maskOf(nil), news: &serviceNews{}}
	l.read(io.LimitReader(endless{}, 1<<20))
	size := 0
	for _, line := range l.last() {
		if len(line) > joblog.MaxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
		size += len(line)
	}
	if size == 0 || size > tailBytes+joblog.MaxLine {
		t.Errorf("%d bytes are kept", size)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestNewsWaitForALog(t *testing.T) {
	var n serviceNews
	l := &serviceLog{source: "db", mask: maskOf(nil), news: &n, live: true}
	for range waitingNews + 2 {
		l.take(time.Now(), "early")
	}
	var b bytes.Buffer
	detach := n.attach(joblog.New(&b))
	if got := strings.Count(b.String(), "early"); got != waitingNews || !strings.Contains(b.String(), "2 more lines") {
		t.Errorf("%d lines of %d", got, waitingNews+2)
	}
	b.Reset()
	l.take(time.Now(), "now")
	detach()
	l.take(time.Now(), "later")
	if got := b.String(); !strings.Contains(got, "[service:db] ") || !strings.Contains(got, "now") || strings.Contains(got, "later") {
		t.Errorf("%q", got)
	}
	b.Reset()
	s := &service{names: []string{"db"}, exit: sandbox.Exit{Code: 1, Duration: 1500 * time.Millisecond}, said: &serviceLog{source: "db", mask: maskOf(nil), news: &n}}
	s.said.take(time.Now(), "bind: Address already in use")
	n.ended(s)
	n.attach(joblog.New(&b))
	for _, want := range []string{"Service db ended after 1.5 s with exit status 1", "bind: Address", "hint: a job's services and scripts share one network"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not said:\n%s", want, b.String())
		}
	}
}

// FuzzHostName holds what names in /etc/hosts rely on.
func FuzzHostName(f *testing.F) {
	for _, s := range []string{"db", "DB", "a.b", "a__b", "0x1", "1", "a\n127.0.0.1 x", "é", "", ".", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := hostName(s)
		if !ok {
			return
		}
		if name == "" || len(name) > 253 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			t.Fatalf("%q", name)
		}
		if again, ok := hostName(name); !ok || again != name {
			t.Fatalf("%q, then %q", name, again)
		}
		for _, derived := range derivedNames(s) {
			if strings.Contains(derived, "/") {
				t.Fatalf("derived %q", derived)
			}
		}
	})
}
