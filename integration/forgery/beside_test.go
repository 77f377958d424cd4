package forgery

import (
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
)

// Cases 6 and 28. One job holds a secret in its environment, memory, files and
// shared memory, and offers it on every network and socket that it has. The
// other, at the same time, looks for it.
func TestStealFromTheJobBeside(t *testing.T) {
	t.Parallel()
	const mark = "beside-3a9f"
	victim := harness.Begin(t, harness.Hermetic("export SECRET="+mark, "probe offer $SECRET & while true; do sleep 0.2; done"))
	harness.WaitTrace(t, victim, "offering")
	thief := begin(t, harness.Firewalled("probe seek "+mark+" 127.0.0.1 127.0.0.2 ::1 10.0.0.1 198.18.0.1 1.2.4.2 "+canary))
	victim.Cancel()
	harness.Wait(t, victim)
	succeeded(t, thief, "looked everywhere")
	noEscape(t, thief)
}

// What the theft above would find if jobs met: within one job it is all there.
func TestStealFromOneself(t *testing.T) {
	t.Parallel()
	const mark = "oneself-5b20"
	r := begin(t, harness.Hermetic("probe offer "+mark+" > offer.log &", "while ! grep -q offering offer.log; do sleep 0.1; done", "probe seek "+mark+" 127.0.0.1"))
	succeeded(t, r, "file /builds/group/project/mark-"+mark+": ESCAPE", "/mem: ESCAPE", "shared memory: ESCAPE", "tcp 127.0.0.1: ESCAPE", "udp 127.0.0.1: ESCAPE", "abstract socket: ESCAPE")
}

// Cases 25 and 26. A job writes to every place that it can, and to a cache of a
// protected branch's key. The next job of the same project finds none of it.
func TestLeaveSomethingForTheNextJob(t *testing.T) {
	t.Parallel()
	const mark = "behind-77c1"
	caches := []coordinator.CacheRule{{Key: "main-protected", Paths: []string{"cached/"}}}
	first := harness.Hermetic("mkdir cached", "echo "+mark+" > cached/"+mark, "probe leave "+mark, "(setsid probe offer "+mark+" >/dev/null 2>&1 &)", "echo left")
	first.Caches = caches
	first.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{
		`for d in / /tmp /var/tmp /root /builds /cache /usr/local/bin /etc; do echo ` + mark + ` > $d/mark-` + mark + ` || true; done`,
		`git config --system alias.x '!echo ` + mark + `' || true`,
	}}}
	succeeded(t, begin(t, first), "\nleft")

	next := harness.Hermetic("probe seek "+mark+" 127.0.0.1 ::1", "ls cached 2>/dev/null && echo 'cache: ESCAPE: it was filled' || true")
	next.Caches = caches
	next.Protected = true // the cache is that of refs which anybody may push
	next.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{
		`for f in $(find / '(' -path /proc -o -path /sys ')' -prune -o -name 'mark-*' -print 2>/dev/null); do echo "helper $f: ESCAPE: it is there"; done`,
		`if git config --system alias.x; then echo 'git: ESCAPE: it is there'; fi`,
	}}}
	r := begin(t, next)
	succeeded(t, r, "looked everywhere")
	noEscape(t, r)
}
