package attest

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/sandbox/record"
)

// An Origin is what a record says of where an input comes from: that an
// attestation has it among its subjects. The statement repeats it. The record is
// the host's word, so the authority compares each with what it has signed itself.
type Origin struct {
	Entry       int64
	SHA256      string // of the input
	Attestation string // sha256 of the bundle
	Invocation  string
	Job         int64 // that must have made it; 0 for any
}

// Origins lists what a record says of its inputs' attestations.
func Origins(entries []record.Entry) ([]Origin, error) {
	var out []Origin
	for _, e := range entries {
		var o Origin
		switch e.Kind {
		case record.CacheUsed:
			var k record.Cache
			if r := decode(e, &k); r != nil {
				return nil, r
			}
			o = Origin{e.Seq, k.SHA256, k.Attestation, k.Invocation, 0}
		case record.Fetched:
			var f record.Fetch
			if r := decode(e, &f); r != nil {
				return nil, r
			}
			o = Origin{e.Seq, f.SHA256, f.Attestation, f.Invocation, artifactsOf(f)}
		}
		if o.Attestation != "" {
			out = append(out, o)
		}
	}
	return out, nil
}

// A Download is an artifact of an earlier job of which a record says that nobody
// vouches for it.
type Download struct {
	Entry  int64
	Job    int64 // that GitLab has it from
	SHA256 string
}

// Unattested lists those that the job was given, each once.
func Unattested(entries []record.Entry) ([]Download, error) {
	var out []Download
	seen := map[Download]bool{}
	for _, e := range entries {
		if e.Kind != record.Fetched {
			continue
		}
		var f record.Fetch
		if r := decode(e, &f); r != nil {
			return nil, r
		}
		d := Download{Job: artifactsOf(f), SHA256: f.SHA256}
		if d.Job == 0 || f.Attestation != "" || !(fetch{Fetch: f}).answered() || f.Incomplete != "" || seen[d] {
			continue
		}
		seen[d] = true
		d.Entry = e.Seq
		out = append(out, d)
	}
	return out, nil
}

// checkOrigin admits an attestation with nothing but the whole artifact of a job
// that this one depends on.
func (c *checker) checkOrigin(e record.Entry, f record.Fetch) *Refusal {
	job := artifactsOf(f)
	named := slices.ContainsFunc(c.opened.External.Dependencies, func(d record.DependencyChoice) bool { return d.ID == job })
	switch {
	case (f.Attestation == "") != (f.Invocation == ""):
		return refuse(e, DownloadInconsistent, "an attestation without its invocation, or the reverse")
	case f.Attestation == "":
		return nil
	case !isSHA256(f.Attestation):
		return refuse(e, Malformed, "digest of an attestation")
	case job == 0 || !named || !(fetch{Fetch: f}).answered() || f.Incomplete != "":
		return refuse(e, DownloadInconsistent, "an attestation with what is no artifact of a job that this one depends on")
	}
	return nil
}

// artifactsOf is the job whose artifacts an exchange asked for, or 0.
func artifactsOf(f record.Fetch) int64 {
	u, err := url.Parse(f.URL)
	if err != nil || f.Stage != "download_artifacts" || f.Method != "GET" {
		return 0
	}
	rest, ok := strings.CutSuffix(u.Path, "/artifacts")
	i := strings.LastIndexByte(rest, '/')
	if !ok || !strings.HasSuffix(rest[:i+1], "/api/v4/jobs/") {
		return 0
	}
	id, err := strconv.ParseInt(rest[i+1:], 10, 64)
	if err != nil || id < 0 {
		return 0
	}
	return id
}
