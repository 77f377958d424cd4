package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func contains(s, text string) bool { return strings.Contains(plain(s), text) }

// unattestedID is unattested for a job that may not have ended for GitLab.
func unattestedID(t *testing.T, a *coordinator.Attempt) {
	t.Helper()
	unattested(t, coordinator.Result{ID: a.Job.ID})
}

func TestWhatAFirewalledBuildFetchesIsInTheStatement(t *testing.T) {
	job := firewalled(
		"wget -q -O - http://"+world.PackagesName+"/plain",
		"probe http GET https://"+world.PackagesName+"/secure",
		"wget -q -O big http://"+world.PackagesName+"/size/3000000/big",
		"echo out > out.txt",
	)
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "package /plain", "package /secure")
	s := attested(t, r).Statement
	for uri, body := range map[string]string{
		"http://" + world.PackagesName + "/plain":   "package /plain\n",
		"https://" + world.PackagesName + "/secure": "package /secure\n",
	} {
		found := false
		for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
			found = found || d.URI == uri && d.Digest["sha256"] == digestOf(body)
		}
		if !found {
			t.Errorf("%s is no resolved dependency: %+v", uri, s.Predicate.BuildDefinition.ResolvedDependencies)
		}
	}
	for _, f := range dataOf[record.Fetch](t, evidence(t, r), record.Fetched) {
		if strings.HasSuffix(f.URL, "/big") && f.Bytes != 3000000 {
			t.Errorf("%d bytes of big on record", f.Bytes)
		}
	}
}

func TestRefusalsOfTheFirewallAreExplained(t *testing.T) {
	theWorld.Canary.Visits()
	r := run(t, firewalled(
		"probe http GET https://"+world.CanaryName+"/not-listed",
		"probe http POST https://"+world.PackagesName+"/not-a-read",
		"probe http GET https://"+world.PackagesName+":8443/other-port",
		"probe http GET http://169.254.169.254/latest/meta-data",
		"probe http GET http://192.0.2.20:5000/v2/",
		"probe http GET https://"+world.PackagesName+"/ host="+world.CanaryName,
		"probe http GET https://"+world.PackagesName+"/ sni="+world.CanaryName,
		"echo all tried",
	))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "all tried", "status 403", "blocked  ")
	never(t, r, "status 200")
	unharmed(t)
	blocked := dataOf[record.Block](t, evidence(t, r), record.Blocked)
	var got []string
	for _, b := range blocked {
		got = append(got, b.Method+" "+b.Target+" "+b.Rule)
	}
	slices.Sort(got)
	want := []string{
		"GET http://169.254.169.254/latest/meta-data private-address",
		"GET http://192.0.2.20:5000/v2/ private-address",
		"GET https://" + world.CanaryName + "/not-listed default-deny",
		"GET https://" + world.PackagesName + "/ name-mismatch",
		"GET https://" + world.PackagesName + "/ name-mismatch",
		"GET https://" + world.PackagesName + ":8443/other-port default-deny",
		"POST https://" + world.PackagesName + "/not-a-read default-deny",
	}
	if !slices.Equal(got, want) {
		t.Errorf("refusals on record: %q, want %q", got, want)
	}
	for _, b := range blocked {
		if b.Rule == "" || b.Reason == "" {
			t.Errorf("a refusal without rule or reason: %+v", b)
		}
	}
}

func TestHermeticBuildGetsAnExplanationInsteadOfThePackage(t *testing.T) {
	r := run(t, hermetic("probe http GET https://"+world.PackagesName+"/x", "wget -T 5 -O - http://"+world.PackagesName+"/y || echo refused"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "status 403", "hermetic", "refused", "blocked  ")
	never(t, r, "package /")
}
