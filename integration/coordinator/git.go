package coordinator

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// NewGit serves the bare repositories below root, to everybody and for reading,
// by Git's own CGI program.
func NewGit(root string) (http.Handler, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	libexec, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("coordinator: git --exec-path: %w", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(libexec)), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
			"GIT_CONFIG_KEY_1=uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1=true",
		},
		Stderr: io.Discard,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("service") == "git-receive-pack" || strings.HasSuffix(r.URL.Path, "/git-receive-pack") {
			refuse(w, http.StatusForbidden, "")
			return
		}
		// CGI wants to know the length of what it is given.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxGitBody))
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backend.ServeHTTP(w, r)
	}), nil
}

// authenticateGit lets the jobs of a project, while they run, read its repository.
func (s *Server) authenticateGit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		project := projectOf(r.URL.Path)
		if plain, ok := strings.CutSuffix(r.URL.Path, "/info/refs"); ok && project == "" {
			http.Redirect(w, r, plain+".git/info/refs?"+r.URL.RawQuery, http.StatusMovedPermanently)
			return
		}
		if project == "" {
			refuse(w, http.StatusNotFound, "")
			return
		}
		_, password, _ := r.BasicAuth()
		if !s.mayRead(project, password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
			http.Error(w, "HTTP Basic: Access denied", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) mayRead(project, password string) bool {
	if s.opts.GitToken != "" && equal(password, s.opts.GitToken) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byToken(password)
	return a != nil && a.state.open() && (a.Job.Project == project || s.shared[project][a.Job.Project])
}

// Share puts projects on the list of those whose jobs may read a project.
func (s *Server) Share(project string, with ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared[project] == nil {
		s.shared[project] = map[string]bool{}
	}
	for _, other := range with {
		s.shared[project][other] = true
	}
}

// publish fills in the commit that a job's ref names, and makes the ref that
// GitLab keeps for each pipeline.
func (o Options) publish(j *Job) error {
	repo := filepath.Join(o.Repositories, j.Project+".git")
	if _, err := os.Stat(repo); err != nil {
		return fmt.Errorf("coordinator: project %s: %w", j.Project, err)
	}
	if j.SHA == "" {
		kind := "refs/heads/"
		switch {
		case j.Tag:
			kind = "refs/tags/"
		case j.detached():
			kind = ""
		}
		sha, err := Git(repo, "rev-parse", kind+j.Ref+"^{commit}")
		if err != nil {
			return err
		}
		j.SHA = sha
	}
	_, err := Git(repo, "update-ref", fmt.Sprintf("refs/pipelines/%d", j.PipelineID), j.SHA)
	return err
}

// Git runs one command in a directory, apart from the user's configuration,
// and returns its output without surrounding space.
func Git(dir string, args ...string) (string, error) { return gitWith(nil, dir, args...) }

func gitWith(env []string, dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=Alice Example", "GIT_AUTHOR_EMAIL=alice@example.test",
		"GIT_COMMITTER_NAME=Alice Example", "GIT_COMMITTER_EMAIL=alice@example.test",
		"GIT_AUTHOR_DATE=2026-11-26T12:00:00Z", "GIT_COMMITTER_DATE=2026-11-26T12:00:00Z",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}

// A Tree is what a commit holds.
type Tree struct {
	Files map[string]string // content by path; what ends in .sh is executable
	Links map[string]string // target of a symbolic link by path
	// Modules are commits of submodules by path; .gitmodules is a file.
	Modules map[string]string
	Format  string // of a project that there is not yet; sha1
}

// Publish commits the files of a tree, by path, to a project's branch, making
// the project if there is none, and returns the commit.
func Publish(repositories, project, branch string, files map[string]string) (string, error) {
	return PublishTree(repositories, project, branch, Tree{Files: files})
}

// PublishTree is Publish for what are not only files.
func PublishTree(repositories, project, branch string, t Tree) (string, error) {
	dir, err := os.MkdirTemp("", "hallmark-tree-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for name, content := range t.Files {
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), mode)); err != nil {
			return "", err
		}
	}
	for name, target := range t.Links {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(target, file)); err != nil {
			return "", err
		}
	}
	return publish(repositories, project, branch, dir, t)
}

// PublishDir is Publish for the files of a directory, which is left as it is.
func PublishDir(repositories, project, branch, dir string) (string, error) {
	return publish(repositories, project, branch, dir, Tree{})
}

// publish commits a directory and what else a tree names.
func publish(repositories, project, branch, dir string, t Tree) (string, error) {
	repo := filepath.Join(repositories, project+".git")
	if _, err := os.Stat(repo); err != nil {
		if err := os.MkdirAll(repo, 0o755); err != nil {
			return "", err
		}
		if _, err := Git(repo, "init", "-q", "--bare", "-b", "main", "--object-format="+cmp.Or(t.Format, "sha1")); err != nil {
			return "", err
		}
	}
	scratch, err := os.MkdirTemp("", "hallmark-index-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	env := []string{"GIT_DIR=" + repo, "GIT_WORK_TREE=" + dir, "GIT_INDEX_FILE=" + filepath.Join(scratch, "index")}
	git := func(args ...string) (string, error) { return gitWith(env, dir, args...) }
	if _, err := git("-c", "core.bare=false", "-c", "core.autocrlf=false", "add", "--all", "--force", "."); err != nil {
		return "", err
	}
	for path, commit := range t.Modules {
		if _, err := git("-c", "core.bare=false", "update-index", "--add", "--cacheinfo", "160000,"+commit+","+path); err != nil {
			return "", err
		}
	}
	tree, err := git("write-tree")
	if err != nil {
		return "", err
	}
	args := []string{"commit-tree", "-m", "a commit", tree}
	if parent, err := Git(repo, "rev-parse", "--verify", "-q", "refs/heads/"+branch); err == nil {
		args = append(args, "-p", parent)
	}
	commit, err := Git(repo, args...)
	if err != nil {
		return "", err
	}
	_, err = Git(repo, "update-ref", "refs/heads/"+branch, commit)
	return commit, err
}

func discard(r io.Reader) (int64, error) { return io.Copy(io.Discard, io.LimitReader(r, maxArtifact)) }
