package coordinator

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// traceInterval is how often a runner shall send its trace, in seconds: tests
// wait for what stands in it.
const traceInterval = "1"

// The one runner that takes jobs here, and its machine.
const (
	runnerID  = 7
	managerID = "s_000000000000"
)

func (s *Server) register(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	reply(w, http.StatusCreated, map[string]any{"id": 7, "token": "glrt-registered", "token_expires_at": nil})
}

func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Token string `json:"token"`
	}
	if err := readJSON(r, &in); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]any{"id": 7, "token": in.Token, "token_expires_at": nil})
}

// request hands out the next job, waiting a little for one.
func (s *Server) request(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Token string `json:"token"`
		Info  struct {
			Features map[string]bool `json:"features"`
		} `json:"info"`
	}
	if err := readJSON(r, &in); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	s.features[in.Token] = in.Info.Features
	s.mu.Unlock()
	deadline := time.NewTimer(s.opts.LongPoll)
	defer deadline.Stop()
	for {
		a, added := s.take(in.Token)
		if a != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(a.payload)
			return
		}
		select {
		case <-added:
			continue
		case <-deadline.C:
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
}

// take starts the next job for a runner, or says how to learn of a new one.
func (s *Server) take(runner string) (*Attempt, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, a := range s.queue {
		if a.Job.Runner != "" && a.Job.Runner != runner {
			continue
		}
		s.queue = slices.Delete(s.queue, i, i+1)
		a.state = Running
		return a, nil
	}
	return nil, s.added
}

// attempt finds the job that a runner's or helper's request is about, and
// checks its token. The caller holds s.mu.
func (s *Server) attempt(w http.ResponseWriter, r *http.Request, inBody string) *Attempt {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	a := s.attempts[id]
	if err != nil || a == nil {
		refuse(w, http.StatusNotFound, "")
		return nil
	}
	token := r.Header.Get("JOB-TOKEN")
	if token == "" {
		token = inBody
	}
	if !equal(token, a.token) {
		refuse(w, http.StatusForbidden, "")
		return nil
	}
	return a
}

func (s *Server) update(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Update
		Token string `json:"token"`
	}
	if err := readJSON(r, &in); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempt(w, r, in.Token)
	if a == nil {
		return
	}
	w.Header().Set("Job-Status", string(a.shown()))
	if !a.state.open() || a.status == Canceled && in.State == "running" {
		refuse(w, http.StatusForbidden, "Job is not processing on runner")
		return
	}
	a.updates = append(a.updates, in.Update)
	if in.State == string(Success) || in.State == string(Failed) {
		a.finish(in.Update)
	}
	reply(w, http.StatusOK, nil)
}

// trace appends a piece that starts where the trace ends; any other is refused
// with the place where to go on.
func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.attempt(w, r, "")
	if a == nil {
		return
	}
	w.Header().Set("Job-Status", string(a.shown()))
	if !a.state.open() || a.status == Canceled {
		refuse(w, http.StatusForbidden, "Job is not processing on runner")
		return
	}
	from, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
	offset, err := strconv.Atoi(from)
	if err != nil || offset != len(a.trace) {
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(a.trace)))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	a.trace = append(a.trace, body...)
	if s.opts.OnTrace != nil {
		s.opts.OnTrace(a.Job.ID, body)
	}
	a.checkCancel()
	w.Header().Set("Job-Status", string(a.shown()))
	w.Header().Set("Range", fmt.Sprintf("0-%d", len(a.trace)))
	w.Header().Set("X-GitLab-Trace-Update-Interval", traceInterval)
	w.WriteHeader(http.StatusAccepted)
}

// upload takes an artifact. GitLab keeps the first of each type, whoever with
// the job's token sent it.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	a := s.attempt(w, r, "")
	open := a != nil && a.state.open()
	s.mu.Unlock()
	if a == nil {
		return
	}
	if !open {
		refuse(w, http.StatusForbidden, "Job is not running")
		return
	}
	q := r.URL.Query()
	art := Artifact{Type: q.Get("artifact_type"), Format: q.Get("artifact_format"), ExpireIn: q.Get("expire_in")}
	if err := readArtifact(r, &art); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, have := range a.artifacts {
		if have.Type != art.Type {
			continue
		}
		if sha256.Sum256(have.Data) != sha256.Sum256(art.Data) {
			refuse(w, http.StatusBadRequest, "another artifact of the same type already exists")
			return
		}
		reply(w, http.StatusCreated, map[string]string{"message": "201 Created"})
		return
	}
	a.artifacts = append(a.artifacts, art)
	reply(w, http.StatusCreated, map[string]string{"message": "201 Created"})
}

// readArtifact reads the multipart field "file".
func readArtifact(r *http.Request, art *Artifact) error {
	parts, err := r.MultipartReader()
	if err != nil {
		return err
	}
	for {
		part, err := parts.NextPart()
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("file is missing")
		case err != nil:
			return err
		case part.FormName() == "file":
			return readPart(part, parts, art)
		}
	}
}

func readPart(part *multipart.Part, parts *multipart.Reader, art *Artifact) error {
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(part, maxArtifact+1))
	if err != nil {
		return err
	}
	if n > maxArtifact {
		return fmt.Errorf("more than %d bytes", maxArtifact)
	}
	art.FileName, art.Data = part.FileName(), b.Bytes()
	for { // the whole body, or the client did not finish
		if _, err := parts.NextPart(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	a := s.attempt(w, r, "")
	var art Artifact
	found := false
	if a != nil {
		art, found = Result{Artifacts: a.artifacts}.Artifact("archive")
	}
	s.mu.Unlock()
	switch {
	case a == nil:
	case !found:
		refuse(w, http.StatusNotFound, "")
	default:
		w.Header().Set("Content-Type", "application/zip")
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", art.FileName))
		w.Header().Set("Content-Length", strconv.Itoa(len(art.Data)))
		_, _ = w.Write(art.Data)
	}
}

// dependencies names earlier jobs as a payload does. The caller holds s.mu.
func (s *Server) dependencies(ids []int64) ([]dependency, error) {
	var out []dependency
	for _, id := range ids {
		a := s.attempts[id]
		if a == nil {
			return nil, fmt.Errorf("coordinator: dependency: no job %d", id)
		}
		d := dependency{ID: id, Name: a.Job.Name, Token: a.token}
		if art, ok := (Result{Artifacts: a.artifacts}).Artifact("archive"); ok {
			d.ArtifactsFile = &file{Filename: art.FileName, Size: int64(len(art.Data))}
		}
		out = append(out, d)
	}
	return out, nil
}

// job is GET /api/v4/job: what GitLab knows of the job whose token asks.
func (s *Server) job(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("JOB-TOKEN")
	if token == "" {
		token = r.URL.Query().Get("job_token")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byToken(token)
	switch {
	case a == nil:
		refuse(w, http.StatusUnauthorized, "")
	case !a.shown().open():
		refuse(w, http.StatusForbidden, "Job is not running")
	case a.erased:
		refuse(w, http.StatusForbidden, "Job has been erased!")
	default:
		reply(w, http.StatusOK, a.entity(s.base.String()))
	}
}

// projectJob is GET /api/v4/projects/:id/jobs/:job_id: the same, for people and
// programs with a token of their own.
func (s *Server) projectJob(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	a := s.attempts[id]
	switch {
	case s.opts.ReadToken == "" || !equal(r.Header.Get("PRIVATE-TOKEN"), s.opts.ReadToken):
		refuse(w, http.StatusUnauthorized, "")
	case err != nil || a == nil || r.PathValue("project") != strconv.FormatInt(a.Job.ProjectID, 10):
		refuse(w, http.StatusNotFound, "")
	default:
		reply(w, http.StatusOK, a.entity(s.base.String()))
	}
}

func (s *Server) byToken(token string) *Attempt {
	if token == "" {
		return nil
	}
	for _, a := range s.attempts {
		if equal(token, a.token) {
			return a
		}
	}
	return nil
}

// entity is GitLab's representation of a job, as far as the parts that say
// what the job is.
func (a *Attempt) entity(base string) map[string]any {
	j := &a.Job
	project := base + "/" + j.Project
	var erased any
	if a.erased {
		erased = "2026-11-26T12:30:00.000Z"
	}
	user := map[string]any{"id": j.UserID, "username": "alice", "name": "Alice Example", "state": "active", "web_url": base + "/alice"}
	return map[string]any{
		"id": j.ID, "status": a.shown(), "stage": j.Stage, "name": j.Name, "ref": j.Ref, "tag": j.Tag,
		"coverage": nil, "allow_failure": false,
		"created_at": "2026-11-26T12:00:00.000Z", "started_at": "2026-11-26T12:00:00.500Z", "finished_at": nil, "erased_at": erased,
		"duration": 1.0, "queued_duration": 0.4, "user": user,
		"commit": map[string]any{
			"id": j.SHA, "short_id": j.SHA[:min(8, len(j.SHA))], "title": "a commit", "message": "a commit",
			"author_name": "Alice Example", "author_email": "alice@example.test", "parent_ids": []string{},
		},
		"pipeline": map[string]any{
			"id": j.PipelineID, "iid": 1, "project_id": j.ProjectID, "sha": j.SHA, "ref": j.Ref,
			"status": "running", "source": "push", "web_url": fmt.Sprintf("%s/-/pipelines/%d", project, j.PipelineID),
		},
		"web_url":   fmt.Sprintf("%s/-/jobs/%d", project, j.ID),
		"project":   map[string]any{"ci_job_token_scope_enabled": false},
		"artifacts": []any{}, "artifacts_expire_at": nil, "archived": false, "tag_list": []string{"hallmark"},
		"runner": map[string]any{
			"id": a.runner, "description": "hallmark", "active": true, "paused": false, "is_shared": false,
			"runner_type": "project_type", "name": "gitlab-runner", "online": true, "status": "online",
		},
		"runner_manager": map[string]any{"id": 1, "system_id": a.manager, "version": "19.4.0", "platform": "linux", "architecture": "amd64"},
	}
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func readJSON(r *http.Request, v any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// projectOf takes /group/project.git/info/refs apart.
func projectOf(urlPath string) string {
	project, _, found := strings.Cut(path.Clean(urlPath), ".git/")
	if !found {
		return ""
	}
	return strings.TrimPrefix(project, "/")
}
