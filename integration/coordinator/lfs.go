package coordinator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
)

// KeepLFS has the server keep an object, for every project, and returns the
// pointer that stands for it in a repository.
func (s *Server) KeepLFS(content []byte) (pointer string) {
	sum := sha256.Sum256(content)
	return s.KeepLFSAs(hex.EncodeToString(sum[:]), content)
}

// KeepLFSAs is KeepLFS for a server that has other bytes than it says.
func (s *Server) KeepLFSAs(oid string, content []byte) (pointer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lfs[oid] = content
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", oid, len(content))
}

func (s *Server) lfsObject(oid string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, ok := s.lfs[oid]
	return content, ok
}

// withLFS answers Git LFS, and leaves the rest to git.
func (s *Server) withLFS(git http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repository, oid, object := strings.Cut(r.URL.Path, "/gitlab-lfs/objects/")
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/info/lfs/objects/batch"):
			s.lfsBatch(w, r)
		case object && r.Method == http.MethodGet && strings.HasSuffix(repository, ".git"):
			s.lfsDownload(w, r, oid)
		default:
			git.ServeHTTP(w, r)
		}
	})
}

// lfsBatch says where objects are.
func (s *Server) lfsBatch(w http.ResponseWriter, r *http.Request) {
	type object struct {
		OID     string         `json:"oid"`
		Size    int64          `json:"size"`
		Actions map[string]any `json:"actions,omitempty"`
		Error   map[string]any `json:"error,omitempty"`
	}
	var in struct {
		Operation string   `json:"operation"`
		Objects   []object `json:"objects"`
	}
	if err := readJSON(r, &in); err != nil || in.Operation != "download" {
		refuse(w, http.StatusForbidden, "")
		return
	}
	base := s.URL() + strings.TrimSuffix(r.URL.Path, "/info/lfs/objects/batch")
	for i, o := range in.Objects {
		if _, ok := s.lfsObject(o.OID); !ok {
			in.Objects[i].Error = map[string]any{"code": http.StatusNotFound, "message": "Object does not exist on the server or you don't have permissions to access it"}
			continue
		}
		in.Objects[i].Actions = map[string]any{"download": map[string]any{
			"href": base + "/gitlab-lfs/objects/" + o.OID, "header": map[string]string{"Authorization": r.Header.Get("Authorization")},
		}}
	}
	reply(w, http.StatusOK, map[string]any{"transfer": "basic", "objects": in.Objects})
}

// lfsDownload hands an object out, or says where its bytes lie.
func (s *Server) lfsDownload(w http.ResponseWriter, r *http.Request, oid string) {
	content, ok := s.lfsObject(oid)
	switch {
	case !ok:
		refuse(w, http.StatusNotFound, "")
	case s.opts.ObjectStorage != "":
		http.Redirect(w, r, s.opts.ObjectStorage+"/"+oid+"?X-Amz-Signature=0123456789abcdef", http.StatusFound)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(content)
	}
}

// ServeObjects is the object storage that Options.ObjectStorage names, for whoever has a
// signature.
func (s *Server) ServeObjects(w http.ResponseWriter, r *http.Request) {
	content, ok := s.lfsObject(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
	if !ok || r.URL.Query().Get("X-Amz-Signature") == "" || r.Header.Get("Authorization") != "" {
		http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(content)
}
