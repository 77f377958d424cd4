package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"hallmark.build/attest"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/store"
)

// Limits of what readers get.
const (
	maxFound       = 100     // bundles in one answer
	maxFoundSize   = 8 << 20 // bytes of bundles in one answer, which is made in memory
	maxReaders     = 64      // requests at a time
	maxConnections = 256     // so that readers cannot take the descriptors that signing needs
	maxPath        = 2048    // bytes
)

// A page is what a path names.
type page struct {
	kind  pageKind
	value string // digest, job id, project, attempt or profile
}

type pageKind int

const (
	noPage pageKind = iota
	subjectPage
	bundlePage
	jobPage
	projectPage
	recordPage
	attemptPage
	logPage
	builderPage
	trustedRootPage
	healthPage
	readyPage
	metricsPage
)

// parsePath reads the path of a request, already unescaped. builders is the
// path of the builder URI: below it stand the pages that builder ids name.
func parsePath(path, builders string) page {
	if len(path) > maxPath {
		return page{}
	}
	switch path {
	case "/trusted-root.json":
		return page{kind: trustedRootPage}
	case "/healthz":
		return page{kind: healthPage}
	case "/readyz":
		return page{kind: readyPage}
	case "/metrics":
		return page{kind: metricsPage}
	}
	if rest, ok := strings.CutPrefix(path, "/v1/"); ok {
		return parseV1(rest)
	}
	if rest, ok := strings.CutPrefix(path, "/log/"); ok {
		return page{logPage, rest}
	}
	for _, prefix := range []string{"/builders/", builders + "/"} {
		if profile, ok := strings.CutPrefix(path, prefix); ok && attest.KnownProfile(profile) {
			return page{builderPage, profile}
		}
	}
	return page{}
}

func parseV1(path string) page {
	what, value, _ := strings.Cut(path, "/")
	switch what {
	case "subjects", "bundles":
		digest, ok := strings.CutPrefix(value, "sha256:")
		if !ok || !isHex(digest, 64) {
			return page{}
		}
		if what == "bundles" {
			return page{bundlePage, digest}
		}
		return page{subjectPage, digest}
	case "jobs":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n <= 0 || strconv.FormatInt(n, 10) != value {
			return page{}
		}
		return page{jobPage, value}
	case "projects":
		if !isProject(value) {
			return page{}
		}
		return page{projectPage, value}
	case "attempts":
		id, record := strings.CutSuffix(value, "/record")
		switch {
		case !isHex(id, 32):
			return page{}
		case record:
			return page{recordPage, id}
		}
		return page{attemptPage, id}
	}
	return page{}
}

// isProject reports whether a path can be a GitLab project's.
func isProject(path string) bool {
	parts := strings.Split(path, "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return false
		}
		for _, r := range p {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_.-", r) {
				return false
			}
		}
	}
	return len(parts) >= 2
}

// HTTP serves what anybody may read: bundles, records, the trusted root, and
// the pages that builder ids name. It changes nothing.
func (a *Authority) HTTP() http.Handler {
	slots := make(chan struct{}, maxReaders)
	builders := ""
	if u, err := url.Parse(a.cfg.BuilderURI); err == nil {
		builders = u.Path
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "this service can only be read", http.StatusMethodNotAllowed)
			return
		}
		p := parsePath(r.URL.Path, builders)
		if p.kind == healthPage || p.kind == metricsPage {
			a.serve(w, r, p) // whoever watches must not wait for readers
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			h.Set("Retry-After", "1")
			http.Error(w, "too many readers", http.StatusServiceUnavailable)
			return
		}
		a.serve(w, r, p)
	})
}

// ListenHTTP opens the port for readers, to so many of them at a time.
func ListenHTTP(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	return netutil.LimitListener(l, maxConnections), nil
}

// NewHTTPServer is the handler with bounds on time and headers.
func NewHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       15 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
}

func (a *Authority) serve(w http.ResponseWriter, r *http.Request, p page) {
	ctx := r.Context()
	switch p.kind {
	case subjectPage:
		found, err := a.cfg.Store.BySubject(ctx, p.value, store.Filter{}, maxFound+1)
		a.serveFound(w, r, found, err)
	case jobPage:
		id, err := strconv.ParseInt(p.value, 10, 64)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		found, err := a.cfg.Store.ByJob(ctx, id, maxFound+1)
		a.serveFound(w, r, found, err)
	case projectPage:
		found, err := a.cfg.Store.ByProject(ctx, p.value, maxFound+1)
		a.serveFound(w, r, found, err)
	case bundlePage:
		a.serveBundle(w, r, p.value)
	case recordPage:
		a.serveRecord(w, r, p.value)
	case attemptPage:
		a.serveAttempt(w, r, p.value)
	case logPage:
		a.serveLog(w, r)
	case trustedRootPage:
		root, err := a.trustedRoot()
		a.serveBytes(w, r, "application/json", root, err)
	case builderPage:
		a.serveBytes(w, r, "text/plain; charset=utf-8", []byte(builderText(a.cfg.BuilderURI, p.value)), nil)
	case healthPage:
		a.serveBytes(w, r, "text/plain; charset=utf-8", []byte("alive\n"), nil)
	case readyPage:
		text, err := a.readiness(ctx)
		a.serveBytes(w, r, "text/plain; charset=utf-8", []byte(text), err)
	case metricsPage:
		var b bytes.Buffer
		a.metrics.write(&b)
		a.serveBytes(w, r, "text/plain; version=0.0.4; charset=utf-8", b.Bytes(), nil)
	default:
		http.NotFound(w, r)
	}
}

// trustedRoot is what readers must be given to verify what is served here.
func (a *Authority) trustedRoot() ([]byte, error) {
	root, err := a.cfg.Signer.Trusted()
	if err != nil {
		return nil, err
	}
	if a.cfg.Transparency != nil {
		root.Tlogs = append(root.Tlogs, a.cfg.Transparency.Trusted()...)
	}
	return sign.EncodeTrustedRoot(root)
}

// maxCounted bounds how many attempts are counted for a reader.
const maxCounted = 1000

// readiness says that the store answers, and what is on its way.
func (a *Authority) readiness(ctx context.Context) (string, error) {
	if err := a.cfg.Store.Ready(ctx); err != nil {
		return "", err
	}
	signed, err := a.cfg.Store.Signed(ctx, maxCounted)
	if err != nil {
		return "", err
	}
	waiting, err := a.cfg.Store.Waiting(ctx, maxCounted)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("ready\nsigned, without log proof: %s\nwaiting for gitlab: %s\n", counted(len(signed)), counted(len(waiting))), nil
}

func counted(n int) string {
	if n == maxCounted {
		return "at least " + strconv.Itoa(n)
	}
	return strconv.Itoa(n)
}

// serveLog lets the log answer. Its paths begin at its own root.
func (a *Authority) serveLog(w http.ResponseWriter, r *http.Request) {
	if a.cfg.LogHandler == nil {
		http.NotFound(w, r)
		return
	}
	http.StripPrefix("/log", a.cfg.LogHandler).ServeHTTP(w, r)
}

// An attemptStatus tells what became of an attempt. It only grows new fields.
type attemptStatus struct {
	Attempt string         `json:"attempt"`
	JobID   int64          `json:"job_id"`
	Profile string         `json:"profile"`
	State   string         `json:"state"` // "open", "waiting", "signed", "closed", "refused" or "superseded"
	Reason  string         `json:"reason,omitempty"`
	IDToken *store.IDToken `json:"id_token,omitempty"` // evidence
	Bundles []string       `json:"bundles,omitempty"`  // by sha256
}

func (a *Authority) serveAttempt(w http.ResponseWriter, r *http.Request, id string) {
	at, err := a.cfg.Store.Attempt(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return
	}
	s := attemptStatus{Attempt: at.ID, JobID: at.Job.ID, Profile: at.Profile, State: string(at.State), Reason: at.Reason, IDToken: at.Job.IDToken}
	switch {
	case at.State == store.StateOpen && at.Reason != "":
		s.State = "waiting"
	case at.State == store.StateSigned:
		s.Reason = signedReason
	case at.State == store.StateClosed:
		found, err := a.cfg.Store.ByJob(r.Context(), at.Job.ID, maxFound)
		if err != nil {
			a.serveBytes(w, r, "", nil, err)
			return
		}
		for _, f := range found {
			if f.Attempt == id {
				s.Bundles = append(s.Bundles, f.SHA256)
			}
		}
	}
	text, err := json.Marshal(s)
	a.serveBytes(w, r, "application/json", append(text, '\n'), err)
}

// A foundList is the answer to a search. It only grows new fields.
type foundList struct {
	Attestations []foundItem `json:"attestations"`
	Truncated    bool        `json:"truncated,omitempty"` // there are more, older ones
}

type foundItem struct {
	Bundle   json.RawMessage `json:"bundle"`
	SHA256   string          `json:"sha256"` // of the bundle
	JobID    int64           `json:"job_id"`
	Project  string          `json:"project"`
	Attempt  string          `json:"attempt"`
	Part     int             `json:"part"`
	ClosedAt string          `json:"closed_at"`
}

func (a *Authority) serveFound(w http.ResponseWriter, r *http.Request, found []store.Found, err error) {
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return
	}
	list, err := a.foundList(r.Context(), found)
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err = enc.Encode(list)
	a.serveBytes(w, r, "application/json", b.Bytes(), err)
}

func (a *Authority) foundList(ctx context.Context, found []store.Found) (foundList, error) {
	list := foundList{Attestations: []foundItem{}}
	room := maxFoundSize
	for i, f := range found {
		bundle, err := a.cfg.Store.Content(ctx, f.SHA256)
		if err != nil {
			return foundList{}, err
		}
		// One bundle is always shown, however large it is.
		if room -= len(bundle); i == maxFound || room < 0 && i > 0 {
			list.Truncated = true
			break
		}
		list.Attestations = append(list.Attestations, foundItem{
			Bundle: bundle, SHA256: f.SHA256, JobID: f.JobID, Project: f.Project,
			Attempt: f.Attempt, Part: f.Part, ClosedAt: f.Closed.Format(time.RFC3339),
		})
	}
	return list, nil
}

func (a *Authority) serveBundle(w http.ResponseWriter, r *http.Request, digest string) {
	if !a.known(r.Context(), w, r, digest) {
		return
	}
	bundle, err := a.cfg.Store.Content(r.Context(), digest)
	if errors.Is(err, store.ErrNotFound) {
		http.NotFound(w, r)
		return
	}
	a.serveBytes(w, r, "application/vnd.dev.sigstore.bundle.v0.3+json", bundle, err)
}

// known reports whether a decision holds the bundle: one that is only staged
// was not decided yet.
func (a *Authority) known(ctx context.Context, w http.ResponseWriter, r *http.Request, digest string) bool {
	ok, err := a.cfg.Store.HasBundle(ctx, digest)
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return false
	}
	if !ok {
		http.NotFound(w, r)
	}
	return ok
}

// serveRecord sends the record of an attempt that has ended: until then it is
// not whole.
func (a *Authority) serveRecord(w http.ResponseWriter, r *http.Request, attempt string) {
	at, err := a.cfg.Store.Attempt(r.Context(), attempt)
	if errors.Is(err, store.ErrNotFound) || err == nil && (at.State == store.StateOpen || at.State == store.StateSigned) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return
	}
	f, err := a.cfg.Store.OpenRecord(r.Context(), attempt)
	if errors.Is(err, store.ErrNotFound) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		a.serveBytes(w, r, "", nil, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("X-Hallmark-State", string(at.State))
	http.ServeContent(w, r, "", time.Time{}, f)
}

func (a *Authority) serveBytes(w http.ResponseWriter, r *http.Request, kind string, body []byte, err error) {
	if err != nil {
		a.cfg.Log.ErrorContext(r.Context(), "answer failed", "path", r.URL.Path, "error", err)
		http.Error(w, "the authority cannot answer now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method == http.MethodGet {
		w.Write(body) // a reader who went away needs no answer
	}
}
