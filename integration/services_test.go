package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// web is a service that serves a page on port 80.
func web(alias string) coordinator.Image {
	return coordinator.Image{Name: theWorld.Images[images.Web], Alias: alias}
}

// shellService runs a script beside the build.
func shellService(alias, script string) coordinator.Image {
	return coordinator.Image{Name: theWorld.Images[images.Shell], Alias: alias, Entrypoint: []string{"sh", "-c"}, Command: []string{script},
		Variables: []coordinator.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: "7777"}}}
}

// upAfter is the end of a service's script: it listens, and so the job goes on.
const upAfter = "; nc -l -p 7777; sleep 600"

func TestServiceIsReachedByEachOfItsNames(t *testing.T) {
	names := []string{world.RegistryName + "__ci__web", world.RegistryName + "-ci-web", "web", "pages", "sub.pages"}
	job := hermetic()
	for _, name := range names {
		job.Script = append(job.Script, "wget -qO- http://"+name+"/", "nslookup "+name+" 127.0.0.1 | grep -q 127.0.0.1 && echo dns "+name)
	}
	job.Script = append(job.Script, "wget -qO- http://WEB/ && echo whatever the case", "cat /etc/hosts > hosts.txt")
	job.Artifacts = coordinator.Archive("hosts.txt")
	job.Services = []coordinator.Image{web("web,pages  Sub.Pages")}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	if n := strings.Count(plain(r.Trace), "\na page"); n != len(names)+1 {
		t.Errorf("the page was read %d times, want %d", n, len(names)+1)
	}
	for _, name := range names {
		mention(t, r, "\ndns "+name)
	}
	if hosts := archive(t, r)["hosts.txt"]; !strings.Contains(hosts, strings.Join(names, " ")) {
		t.Errorf("/etc/hosts:\n%s", hosts)
	}

	found := false
	for _, im := range dataOf[record.Image](t, evidence(t, r), record.ImageResolved) {
		if im.Role == "service" {
			found = true
			if diff := cmp.Diff(names, im.Names); diff != "" || im.Name != theWorld.Images[images.Web] {
				t.Errorf("recorded %s as %s", im.Name, diff)
			}
		}
	}
	if !found {
		t.Error("no service in the record")
	}
	pinned := theWorld.Pinned[images.Web]
	digest := pinned[strings.Index(pinned, "sha256:")+len("sha256:"):]
	st := attested(t, r).Statement
	if !slices.ContainsFunc(st.Predicate.BuildDefinition.ResolvedDependencies, func(d harness.Dependency) bool {
		return d.Digest["sha256"] == digest
	}) {
		t.Errorf("the statement does not list %s", pinned)
	}
}

func TestServiceGetsWhatTheJobSaysOfIt(t *testing.T) {
	// The job asks for the services' words, and GitLab for silence about a secret.
	job := hermetic("cat env.txt", "cat user.txt", "wget -qO- http://page/ | head -1")
	job.Variables = []coordinator.Variable{
		{Key: "CI_DEBUG_SERVICES", Value: "true", Public: true},
		{Key: "HIDDEN", Value: "hunter2-hunter2", Masked: true},
		{Key: "SHOWN", Value: "for all", Public: true},
	}
	env := shellService("env", "env > $CI_PROJECT_DIR/env.txt; pwd >> $CI_PROJECT_DIR/env.txt; echo the service knows $SECRET_REF; echo whole-$SHOWN >&2"+upAfter)
	env.Name = theWorld.Images[images.Web]
	env.Variables = append(env.Variables, coordinator.Variable{Key: "SECRET_REF", Value: "<$HIDDEN>"}, coordinator.Variable{Key: "OVER", Value: "service"},
		coordinator.Variable{Key: "RAW", Value: "$SHOWN", Raw: true}, coordinator.Variable{Key: "CERT", Value: "pem", File: true})
	user := shellService("user", "echo service user $(id -u) > $CI_PROJECT_DIR/user.txt"+strings.ReplaceAll(upAfter, "7777", "7778"))
	user.User = "builder"
	user.Variables[0].Value = "7778"
	job.Services = []coordinator.Image{env, user, {Name: theWorld.Images[images.Web], Alias: "page"}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nSHOWN=for all", "\nSECRET_REF=<[MASKED]>", "\nOVER=service", "\nFROM_IMAGE=image", "\nRAW=$SHOWN", "\nCERT=/builds/group/project.tmp/CERT",
		"\nCI_PROJECT_DIR=/builds/group/project", "\n/www", "\nservice user 1000", "\na page")
	mention(t, r, "[service:"+world.RegistryName+"__ci__web-", "the service knows <[MASKED]>", "whole-for all")
	never(t, r, "hunter2", "\nHIDDEN=", "\nCI_JOB_TOKEN=")
}

func TestDatabasesServeTheJob(t *testing.T) {
	ask := func(name string, port string, command string) string {
		return "printf '" + command + "\\r\\nQUIT\\r\\n' | nc " + name + " " + port
	}
	job := hermetic(ask("redis", "6379", "SET k from-the-job"), ask("redis", "6379", "GET k"), ask("second", "6380", "PING"), ask("second", "6380", "EXISTS k"))
	first := coordinator.Image{Name: theWorld.Images[images.Redis], Alias: "redis"}
	second := coordinator.Image{Name: theWorld.Images[images.Redis], Alias: "second", Command: []string{"--port", "6380", "--protected-mode", "no"},
		Variables: []coordinator.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: "6380"}}}
	job.Services = []coordinator.Image{first, second}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "2 of 2 listen", "+OK", "from-the-job", "+PONG", ":0")
	never(t, r, "WARNING: Service")
}

func TestServicesThatDoNotServeAreExplained(t *testing.T) {
	mute := shellService("mute", "echo mute is thinking; sleep 600")
	gone := shellService("gone", "echo no configuration; exit 3")
	silent := shellService("noport", "sleep 600")
	silent.Variables = nil
	job := hermetic("echo the script runs")
	job.Services = []coordinator.Image{mute, gone, silent, web("first"), web("second")}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nthe script runs",
		"*** WARNING: Service mute probably didn't start properly.", "nothing listens on port 7777 after 10s", "mute is thinking",
		"Service gone probably didn't start properly.", "exit status 3", "no configuration",
		"Service noport: its image exposes no port",
		"Services first and second both want port 80", "ddress already in use", "hint: a job's services and scripts share one network")
}

func TestFirewalledServiceReachesTheAllowListAlone(t *testing.T) {
	theWorld.Canary.Visits()
	job := firewalled("cat got.txt", "echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	job.Services = []coordinator.Image{shellService("fetcher",
		"wget -qO $CI_PROJECT_DIR/got.txt http://"+world.PackagesName+"/plain; wget -qO- http://"+world.CanaryName+"/; wget -qO- http://"+world.GitLabName+"/api/v4/job"+upAfter)}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\npackage /plain", "blocked", world.CanaryName)
	if visits := theWorld.Canary.Visits(); len(visits) != 0 {
		t.Errorf("the service reached %v", visits)
	}
	fetches := dataOf[record.Fetch](t, evidence(t, r), record.Fetched)
	if !slices.ContainsFunc(fetches, func(f record.Fetch) bool {
		return f.Stage == "services" && f.Role == "build" && f.URL == "http://"+world.PackagesName+"/plain" && f.SHA256 == digestOf("package /plain\n")
	}) {
		t.Errorf("the service's exchange is not on record: %+v", fetches)
	}
	if s := attested(t, r).Statement; !strings.Contains(s.Raw, "http://"+world.PackagesName+"/plain") {
		t.Error("the statement does not list what the service fetched")
	}
}

// A service is the tenant's, and may be hostile to the rest of the job.
func TestServiceHarmsNeitherTheBuildNorItsOutputs(t *testing.T) {
	theWorld.Canary.Visits()
	attacks := []string{
		"kill -9 -1", "for p in $(seq 1 400); do [ $p = $$ ] || kill -9 $p; done", // in its own pid namespace there is nobody
		"ls -d /proc/[0-9]* | wc -l > $CI_PROJECT_DIR/seen.txt",
		"wget -qO- http://" + world.CanaryName + "/", "nc -w 1 " + world.GitLabName + " 443 </dev/null",
		"trap 'echo said goodbye > $CI_PROJECT_DIR/bye.txt; exit' TERM",
		"(trap '' TERM; while :; do echo changed > $CI_PROJECT_DIR/out.txt; echo late > $CI_PROJECT_DIR/late.txt; done) &",
		"nc -l -p 7777", "while :; do sleep 1; done",
	}
	job := hermetic("sleep 1", "cat seen.txt", "while [ ! -e late.txt ]; do sleep 0.1; done", "echo the build lives")
	job.Artifacts = coordinator.Archive("out.txt", "bye.txt", "late.txt")
	job.Services = []coordinator.Image{shellService("hostile", strings.Join(attacks, "\n"))}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nthe build lives")
	// What it did not get to write to its end is as it was when it was killed.
	if got := archive(t, r); got["bye.txt"] != "said goodbye\n" || !strings.HasPrefix("late\n", got["late.txt"]) {
		t.Errorf("the service's last words: %q", got)
	}
	attested(t, r) // what was uploaded is what was sealed
	if visits := theWorld.Canary.Visits(); len(visits) != 0 {
		t.Errorf("the service reached %v", visits)
	}
	blocked := dataOf[record.Block](t, evidence(t, r), record.Blocked)
	if !slices.ContainsFunc(blocked, func(b record.Block) bool { return b.Stage == "services" && b.Rule == "hermetic" }) {
		t.Errorf("no refusal of the service's is on record: %+v", blocked)
	}
}

func TestTenServicesAtOnce(t *testing.T) {
	job := hermetic()
	for i := range 10 {
		name, port := fmt.Sprintf("web%d", i), fmt.Sprint(8000+i)
		s := web(name)
		s.Command = []string{"busybox", "httpd", "-f", "-p", port}
		s.Variables = []coordinator.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: port}}
		job.Services = append(job.Services, s)
		job.Script = append(job.Script, "wget -qO- http://"+name+":"+port+"/")
	}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "10 of 10 listen")
	if n := strings.Count(plain(r.Trace), "\na page"); n != 10 {
		t.Errorf("%d pages, want 10", n)
	}
}

func TestServicesThatAJobCannotHaveFailIt(t *testing.T) {
	many := make([]coordinator.Image, 17)
	for i := range many {
		many[i] = web(fmt.Sprintf("web%d", i))
	}
	missing := web("missing")
	missing.Entrypoint = []string{"/no/such/program"}
	foreign := web("foreign")
	foreign.Name = world.RegistryName + ":5000/other/image:1"
	for name, c := range map[string]struct {
		services []coordinator.Image
		says     []string
	}{
		"too many":        {many, []string{"too many services requested: 17, only 16 allowed"}},
		"GitLab's name":   {[]coordinator.Image{web(world.GitLabName)}, []string{world.GitLabName, "hint:"}},
		"no host name":    {[]coordinator.Image{web("a/b")}, []string{"no host name", "hint:"}},
		"image not there": {[]coordinator.Image{foreign}, []string{"other/image", "hint:"}},
		"no such program": {[]coordinator.Image{missing}, []string{"/no/such/program", "hint:"}},
	} {
		t.Run(name, func(t *testing.T) {
			job := hermetic("echo not reached")
			job.Services = c.services
			r := run(t, job)
			expect(t, r, coordinator.Failed, "script_failure")
			mention(t, r, c.says...)
			never(t, r, "\nnot reached", "Will be retried")
			unattested(t, r)
		})
	}
}

func TestServicesEndWithAJobThatIsCanceled(t *testing.T) {
	job := hermetic(long...)
	job.Services = []coordinator.Image{web("web"), shellService("stubborn", "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) &"+upAfter)}
	a := start(t, job)
	a.CancelOn("begun", coordinator.Canceled)
	waitTrace(t, a, "begun")
	gone(t)
	unattestedID(t, a)
}
