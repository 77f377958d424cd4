package coordinator

import (
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// A Fault makes the server answer wrongly, for tests of what happens then.
type Fault struct {
	Method string // "" for any
	Path   string // pattern of path.Match, e.g. /api/v4/jobs/*/artifacts; "" for any
	Times  int    // how often; 0 is for ever

	Status int // answered in place of the truth
	Header http.Header
	Body   string        // JSON
	Delay  time.Duration // before anything else
	Drop   bool          // close the connection without an answer
	// ReadBody takes the request's body in before the answer, as a server that
	// refuses late does.
	ReadBody bool
}

func (f *Fault) matches(r *http.Request) bool {
	if f.Method != "" && f.Method != r.Method {
		return false
	}
	if f.Path == "" {
		return true
	}
	ok, err := path.Match(f.Path, r.URL.Path)
	return err == nil && ok
}

// Inject adds a fault; the returned function takes it away. The oldest fault
// that matches counts.
func (s *Server) Inject(f Fault) (remove func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &f
	s.faults = append(s.faults, p)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.removeFault(p)
	}
}

func (s *Server) removeFault(p *Fault) {
	for i, f := range s.faults {
		if f == p {
			s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
			return
		}
	}
}

// SetDown makes the server drop every connection, or come back.
func (s *Server) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// fault finds the fault that applies to a request, and counts it.
func (s *Server) fault(r *http.Request) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return Fault{Drop: true}, true
	}
	for _, f := range s.faults {
		if !f.matches(r) {
			continue
		}
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				s.removeFault(f)
			}
		}
		return *f, true
	}
	return Fault{}, false
}

// A Request is one that the server was asked.
type Request struct {
	Time      time.Time
	Method    string
	Path      string
	Query     string
	Host      string
	UserAgent string
	JobID     int64  // the job whose token it carried; 0 if none
	Token     string // where: "", "job-token", "runner-token" or "basic"
	Status    int
	Faulty    bool // answered by a Fault
}

// observe keeps a record of each request, and lets faults answer.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entry := Request{Time: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, UserAgent: r.UserAgent()}
		entry.Token, entry.JobID = s.bearer(r)
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			entry.Status = answer.status
			s.mu.Lock()
			defer s.mu.Unlock()
			s.requests = append(s.requests, entry)
		}()
		fault, found := s.fault(r)
		if found {
			entry.Faulty = true
			answerFault(answer, r, fault)
			return
		}
		next.ServeHTTP(answer, r)
	})
}

func answerFault(w *statusWriter, r *http.Request, f Fault) {
	select {
	case <-time.After(f.Delay):
	case <-r.Context().Done():
	}
	if f.Drop {
		w.status = 0
		panic(http.ErrAbortHandler)
	}
	if f.ReadBody {
		_, _ = discard(r.Body)
	}
	for key, values := range f.Header {
		w.Header()[key] = values
	}
	if f.Body != "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(f.Status)
	_, _ = w.Write([]byte(f.Body))
}

// bearer says whose token a request carries.
func (s *Server) bearer(r *http.Request) (where string, job int64) {
	token := r.Header.Get("JOB-TOKEN")
	where = "job-token"
	if token == "" {
		if r.Header.Get("RUNNER-TOKEN") != "" {
			return "runner-token", 0
		}
		_, password, ok := r.BasicAuth()
		if !ok {
			return "", 0
		}
		where, token = "basic", password
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.byToken(token); a != nil {
		return where, a.Job.ID
	}
	return where, 0
}

// Job reports the job that a request's path names, or 0.
func (r Request) Job() int64 {
	rest, found := strings.CutPrefix(r.Path, "/api/v4/jobs/")
	if !found {
		return 0
	}
	id, _, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
