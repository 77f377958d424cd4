// Package coordinator is a GitLab for tests: the part of its API that runners
// and jobs speak, with projects served over Git's smart HTTP protocol.
//
// A test adds a job and waits for its result:
//
//	gitlab, err := coordinator.New(coordinator.Options{URL: "https://gitlab.example.test", Repositories: dir})
//	go http.Serve(listener, gitlab)
//	attempt, err := gitlab.AddJob(coordinator.Job{Project: "group/project", Script: []string{"make"}})
//	result, err := attempt.Wait(ctx)
//
// It keeps what it is sent (every request, every state, the trace, the
// artifacts) and answers as GitLab 19.4 does where a runner or a job can tell
// the difference. [Server.Inject] makes it answer otherwise.
package coordinator

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// Limits of what the server takes in.
const (
	maxBody     = 64 << 20  // bytes of a JSON body or a piece of trace
	maxArtifact = 2 << 30   // bytes of one artifact
	maxGitBody  = 256 << 20 // bytes of one Git request
)

// Options is what a server needs.
type Options struct {
	// URL is where clients find the server, without a path; it is written into
	// jobs. It can be set later, but before the first job, with SetURL.
	URL string
	// Repositories is a directory of bare repositories: group/project.git.
	Repositories string
	// ObjectStorage, if set, is a URL below which what Git LFS keeps lies: the
	// server answers with a redirect there, as GitLab does.
	ObjectStorage string
	// GitToken is a password that Git may give besides the tokens of jobs.
	GitToken string
	// ReadToken is a personal token that may read all jobs.
	ReadToken string
	// LongPoll is how long a request for a job waits for one to be added.
	LongPoll time.Duration
	// OnTrace, if set, gets each new piece of a job's trace as it comes in.
	OnTrace func(job int64, piece []byte)
}

// A Server is the stand-in. It is an http.Handler, safe for concurrent use.
type Server struct {
	opts    Options
	handler http.Handler

	mu       sync.Mutex
	base     *url.URL
	next     int64 // id of the next job
	queue    []*Attempt
	added    chan struct{} // closed and replaced whenever a job is added
	attempts map[int64]*Attempt
	faults   []*Fault
	down     bool
	requests []Request
	features map[string]map[string]bool // by runner token
	idKey    *rsa.PrivateKey            // signs ID tokens
	shared   map[string]map[string]bool // projects whose jobs may read a project
	lfs      map[string][]byte          // by SHA-256
}

// New makes a server. Jobs get ids from 4001 on.
func New(opts Options) (*Server, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("coordinator: %w", err)
	}
	s := &Server{opts: opts, next: 4001, added: make(chan struct{}), attempts: map[int64]*Attempt{}, features: map[string]map[string]bool{}, idKey: key,
		shared: map[string]map[string]bool{}, lfs: map[string][]byte{}}
	if opts.URL != "" {
		if err := s.SetURL(opts.URL); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v4/runners", s.register)
	mux.HandleFunc("POST /api/v4/runners/verify", s.verify)
	mux.HandleFunc("POST /api/v4/jobs/request", s.request)
	mux.HandleFunc("PUT /api/v4/jobs/{id}", s.update)
	mux.HandleFunc("PATCH /api/v4/jobs/{id}/trace", s.trace)
	mux.HandleFunc("POST /api/v4/jobs/{id}/artifacts", s.upload)
	mux.HandleFunc("GET /api/v4/jobs/{id}/artifacts", s.download)
	mux.HandleFunc("GET /api/v4/job", s.job)
	mux.HandleFunc("GET /api/v4/projects/{project}/jobs/{id}", s.projectJob)
	mux.HandleFunc("GET /.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /oauth/discovery/keys", s.keys)
	if opts.Repositories != "" {
		git, err := NewGit(opts.Repositories)
		if err != nil {
			return nil, err
		}
		mux.Handle("/", s.authenticateGit(s.withLFS(git)))
	}
	s.handler = s.observe(mux)
	return s, nil
}

// SetURL says where clients find the server.
func (s *Server) SetURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.Path != "" {
		return fmt.Errorf("coordinator: url %q: want http or https with a host and no path", raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base = u
	return nil
}

// URL is where clients find the server.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil {
		return ""
	}
	return s.base.String()
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// AddJob queues a job for the next runner that asks.
func (s *Server) AddJob(j Job) (*Attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base == nil {
		return nil, errors.New("coordinator: a job needs the server's URL first")
	}
	if j.ID == 0 {
		j.ID = s.next
	}
	if _, taken := s.attempts[j.ID]; taken {
		return nil, fmt.Errorf("coordinator: job %d exists", j.ID)
	}
	s.next = max(s.next, j.ID) + 1
	j.fill()
	if s.opts.Repositories != "" {
		if err := s.opts.publish(&j); err != nil {
			return nil, err
		}
	}
	token := newToken()
	deps, err := s.dependencies(j.Dependencies)
	if err != nil {
		return nil, err
	}
	if err := s.addIDTokens(&j); err != nil {
		return nil, err
	}
	payload, err := j.payload(s.base, token, deps)
	if err != nil {
		return nil, err
	}
	a := &Attempt{Job: j, server: s, token: token, payload: payload, state: Pending, runner: runnerID, manager: managerID, done: make(chan struct{})}
	s.interrupt(j)
	s.attempts[j.ID] = a
	if !j.Held {
		s.enqueue(a)
	}
	return a, nil
}

// interrupt cancels, as the button does, what a job's pipeline makes redundant.
func (s *Server) interrupt(newer Job) {
	for _, a := range s.attempts {
		older := a.Job.Project == newer.Project && a.Job.Ref == newer.Ref && a.Job.PipelineID < newer.PipelineID
		if older && a.Job.Interruptible && a.state.open() && a.status == "" {
			a.status = Canceling
		}
	}
}

func (s *Server) enqueue(a *Attempt) {
	s.queue = append(s.queue, a)
	close(s.added)
	s.added = make(chan struct{})
}

// Withdraw takes all jobs that no runner has yet out of the queue.
func (s *Server) Withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = nil
}

// Requests is what the server has been asked so far, oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Features are what a runner said that it can do when it asked for a job.
func (s *Server) Features(runner string) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.features[runner]
}

// newToken makes a job token of the form that GitLab gives out.
func newToken() string {
	var b [10]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // never happens: crypto/rand aborts the program first
	}
	return "glcbt-64_" + hex.EncodeToString(b[:])
}

// reply answers in JSON. The runner takes no other content type.
func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// refuse answers as GitLab does: {"message":"403 Forbidden"}.
func refuse(w http.ResponseWriter, status int, detail string) {
	text := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if detail != "" {
		text += " - " + detail
	}
	reply(w, status, map[string]string{"message": text})
}
