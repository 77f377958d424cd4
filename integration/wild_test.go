package integration

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// posix is how a job says that its image's shell is no bash and no busybox.
var posix = coordinator.Variable{Key: "FF_POSIXLY_CORRECT_ESCAPES", Value: "true"}

// in is a job in one of the images.
func in(image string, job coordinator.Job) coordinator.Job {
	job.Image.Name = theWorld.Images[image]
	return job
}

// together runs jobs at once, as many as the runner takes, each as a test.
func together(t *testing.T, jobs map[string]coordinator.Job, check func(t *testing.T, name string, r coordinator.Result)) {
	t.Helper()
	attempts := map[string]*coordinator.Attempt{}
	for name, job := range jobs {
		attempts[name] = start(t, job)
	}
	for name, a := range attempts {
		t.Run(name, func(t *testing.T) { check(t, name, wait(t, a)) })
	}
}

func TestImagesAsTheyComeInTheWild(t *testing.T) {
	fetch := "get " + world.PackagesName + " file"
	jobs := map[string]coordinator.Job{
		"nothing but busybox": in(images.Bare, hermetic(
			"echo home is $HOME as $(id -u)", "echo in $(pwd)", "ls -d /builds /cache", "cat README", "mktemp -p . x.XXXXXX")),
		"shell in an odd place": in(images.Odd, hermetic("echo home is $HOME as $(id -u)", "cat README")),
		"dash":                  in(images.Dash, firewalled("echo home is $HOME as $(id -u)", fetch, "cat README")),
		"musl":                  in(images.Musl, firewalled("echo home is $HOME as $(id -u)", fetch, "cat README")),
		"bash":                  in(images.Helper, hermetic("echo home is $HOME as $(id -u)", `[[ $BASH_VERSION ]] && echo "a${HOME:0:1}b"`, "cat README")),
	}
	dash := jobs["dash"]
	dash.Variables = []coordinator.Variable{posix}
	jobs["dash"] = dash
	together(t, jobs, func(t *testing.T, name string, r coordinator.Result) {
		expect(t, r, coordinator.Success, "")
		mention(t, r, "as 0", "\nhello")
		switch name {
		case "dash", "musl":
			mention(t, r, "package /file")
		case "bash":
			mention(t, r, "\na/b")
		}
	})
}

// TestImagesThatRunNoScript are the job's fault, and the log says what to change.
func TestImagesThatRunNoScript(t *testing.T) {
	distroless := in(images.NoShell, hermetic("echo not reached"))
	distroless.Image.Entrypoint = []string{""}
	missing := in(images.Shell, hermetic("echo not reached"))
	missing.Image.Entrypoint = []string{"/no/such/thing"}
	nobody := in(images.Shell, hermetic("echo not reached"))
	nobody.Image.User = "nobody-has-this-name"
	says := map[string][]string{
		"distroless":            {"no shell in", "hint: ", "distroless"},
		"entrypoint ends":       {"I have better things to do", "without running the script", "hint: ", `entrypoint: [""]`},
		"entrypoint is missing": {"/no/such/thing", "hint: ", "entrypoint"},
		"user is missing":       {"nobody-has-this-name", "hint: "},
	}
	together(t, map[string]coordinator.Job{
		"distroless": distroless, "entrypoint is missing": missing, "user is missing": nobody,
		"entrypoint ends": in(images.NoExec, hermetic("echo not reached")),
	}, func(t *testing.T, name string, r coordinator.Result) {
		expect(t, r, coordinator.Failed, "script_failure")
		mention(t, r, says[name]...)
		never(t, r, "\nnot reached", "Will be retried")
		unattested(t, r)
	})
}

// TestUserOfTheImageWritesWhatTheHelperLaidDown, and the other way round.
func TestUserOfTheImageWritesWhatTheHelperLaidDown(t *testing.T) {
	first := in(images.User, hermetic("umask 077", "mkdir -p out/deep", "echo mine > out/deep/secret"))
	first.Artifacts = coordinator.Archive("out/")
	r := run(t, first)
	expect(t, r, coordinator.Success, "")
	if got := archive(t, r)["out/deep/secret"]; got != "mine\n" {
		t.Errorf("the archive holds %q of a file that its user alone may read", got)
	}
	second := in(images.User, hermetic(
		"id -u", "echo more >> README", "echo new > src/new", "rm src/main.sh", "echo changed > out/deep/secret", "mv out moved",
		`echo "from $(cat "$SECRET_FILE")"`, `echo again > "$SECRET_FILE"`, "echo all was mine"))
	second.AfterScript = []string{`cat README src/new moved/deep/secret "$SECRET_FILE"`}
	second.Variables = []coordinator.Variable{{Key: "SECRET_FILE", Value: "a file variable", File: true}}
	second.Dependencies = []int64{r.ID}
	r = run(t, second)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\n1000\n", "\nall was mine", "from a file variable", "hello\nmore\nnew\nchanged\na file variable")
}

func TestScriptsOfAnySizeAndAnyCharacters(t *testing.T) {
	weird := []string{
		`printf '%s\n' 'single $HOME "double" \back'`, `printf '%s|' "dq \$HOME" $'x' \"q\" '!bang!' '#no comment' "semi;colon" '*' "a	tab"; echo`,
		"cat <<'EOF'\nhere $document `with` \"all\" 'of' \\it\nEOF", "echo one \\\n  two", "for i in 1 2; do\n  echo loop $i\ndone",
		"echo ünïcödé 漢字 🙂", "printf '\\376\\377\\000\\001\\n'", "echo \u00a0nbsp\u2028sep",
	}
	want := []string{
		`single $HOME "double" \back`, "#no comment|semi;colon|*|a\ttab|", "here $document `with` \"all\" 'of' \\it",
		"one two", "loop 1\nloop 2", "ünïcödé 漢字 🙂", "\u00a0nbsp\u2028sep",
	}
	long := make([]string, 0, 3000)
	for i := range 3000 {
		long = append(long, fmt.Sprintf("n=$((n+%d)) # %s", i, strings.Repeat("x", 60)))
	}
	long = append(long, "echo sum $n", "echo length $(echo '"+strings.Repeat("y", 140<<10)+"' | wc -c)")
	variables := make([]coordinator.Variable, 0, 5000)
	for i := range 5000 {
		variables = append(variables, coordinator.Variable{Key: fmt.Sprintf("V%04d", i), Value: strings.Repeat("v", 40)})
	}
	jobs := map[string]coordinator.Job{}
	for _, image := range []string{images.Shell, images.Dash, images.Helper} {
		jobs[image] = in(image, hermetic(weird...))
	}
	for name, job := range maps.Clone(jobs) {
		job.Variables = []coordinator.Variable{posix}
		jobs["posix "+name] = job
	}
	delete(jobs, images.Dash) // which has no $'…'
	together(t, jobs, func(t *testing.T, name string, r coordinator.Result) {
		expect(t, r, coordinator.Success, "")
		mention(t, r, want...)
		if !strings.Contains(r.Trace, "\x01\n") {
			t.Error("bytes that are no text did not reach the log")
		}
	})
	many := hermetic(`echo "last: $V4999"`, "echo $(env | grep -c ^V) variables")
	many.Variables = variables
	together(t, map[string]coordinator.Job{"script of 400 KiB": hermetic(long...), "5000 variables": many},
		func(t *testing.T, name string, r coordinator.Result) {
			expect(t, r, coordinator.Success, "")
			if name == "5000 variables" {
				mention(t, r, "\nlast: "+strings.Repeat("v", 40), "\n5000 variables")
				return
			}
			mention(t, r, "\nsum 4498500", "\nlength 143361")
		})
}

func TestMoreVariablesThanTheKernelTakesFailTheJobCleanly(t *testing.T) {
	job := hermetic("echo not reached")
	for i := range 20000 {
		job.Variables = append(job.Variables, coordinator.Variable{Key: fmt.Sprintf("V%05d", i), Value: strings.Repeat("v", 100)})
	}
	r := run(t, job)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "argument list too long")
	never(t, r, "\nnot reached")
}

func TestDebugTraceGivesNoSecretAway(t *testing.T) {
	job := hermetic("echo done")
	job.Variables = []coordinator.Variable{
		{Key: "CI_DEBUG_TRACE", Value: "true"}, {Key: "UNMASKED_SECRET", Value: "open-sesame-7"}, {Key: "SECRET", Value: "hunter2-hunter2", Masked: true},
	}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "CI_DEBUG_TRACE", "\ndone")
	never(t, r, "open-sesame-7", "hunter2-hunter2")

	before := read(t, world.RunnerFile)
	restoreRunner := func(config []byte) {
		rewrite(t, world.RunnerFile, config)
		restart(t, theWorld.Runner)
	}
	restoreRunner([]byte(strings.ReplaceAll(string(before), "debug_trace_disabled = true", "debug_trace_disabled = false")))
	t.Cleanup(func() { restoreRunner(before) })
	r = run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "open-sesame-7", "[MASKED]", "\ndone")
	never(t, r, "hunter2-hunter2")
}

func TestRootIsReadOnlyWhereTheAdminAsks(t *testing.T) {
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", func(old string) string { return "read_only_root = true\n" + old })
	probe := []string{
		"for d in /etc /root /bin /; do (: > $d/x) 2>/dev/null && echo wrote to $d; done",
		"for d in /tmp /dev/shm . /builds; do : > $d/x && echo fine in $d; done",
		"probe http GET https://" + world.PackagesName + "/file", "echo out > out.txt",
	}
	jobs := map[string]coordinator.Job{}
	for _, image := range []string{images.Shell, images.User} {
		job := in(image, firewalled(probe...))
		job.Artifacts = coordinator.Archive("out.txt")
		jobs[image] = job
	}
	jobs[images.Bare] = in(images.Bare, hermetic(probe[:2]...))
	together(t, jobs, func(t *testing.T, name string, r coordinator.Result) {
		expect(t, r, coordinator.Success, "")
		mention(t, r, "fine in /tmp", "fine in /dev/shm", "fine in .", "fine in /builds")
		never(t, r, "\nwrote to")
		if name != images.Bare {
			mention(t, r, "package /file")
			attested(t, r)
		}
	})
}

// rewrite replaces a file's content; owner and mode stay.
func rewrite(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0); err != nil {
		t.Fatal(err)
	}
}
