package images

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
)

// A guard makes a registry ask for logins as GitLab's and Docker Hub do: nothing
// is given without a token, and a token says whose it is. Everybody gets one;
// what lies below a guarded prefix is given to the holder of its login alone.
type guard struct {
	host string

	mu     sync.Mutex
	areas  []area
	tokens map[string]string // user by token; empty for anyone's
	asked  []string
}

type area struct{ prefix, user, password string }

// Guard keeps the repositories below a prefix for one user.
func (r *Registry) Guard(prefix, user, password string) {
	r.guard.mu.Lock()
	defer r.guard.mu.Unlock()
	r.guard.areas = append(r.guard.areas, area{prefix, user, password})
}

// Asked lists the paths that were asked for since the last call, but for those
// of logging in.
func (r *Registry) Asked() []string {
	r.guard.mu.Lock()
	defer r.guard.mu.Unlock()
	asked := r.guard.asked
	r.guard.asked = nil
	return asked
}

// login is what a repository is kept by.
func (g *guard) login(repository string) (user, password string, kept bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, a := range g.areas {
		if strings.HasPrefix(repository, a.prefix) {
			return a.user, a.password, true
		}
	}
	return "", "", false
}

func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			g.giveToken(w, r)
			return
		}
		path := strings.TrimPrefix(r.URL.Path, "/v2/")
		holder, has := g.holder(r)
		user, _, kept := g.login(path)
		if path != "" && has {
			g.note(r.Method + " " + path)
		}
		if !has || kept && user != holder {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+g.host+`/token",service="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *guard) note(asked string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, asked)
}

// holder is whose token a request bears.
func (g *guard) holder(r *http.Request) (user string, has bool) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	g.mu.Lock()
	defer g.mu.Unlock()
	user, has = g.tokens[token]
	return user, has
}

// giveToken refuses wrong logins, and gives those without one a token for what
// is open.
func (g *guard) giveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet { // as GitLab: OAuth's way is not known there
		w.WriteHeader(http.StatusNotFound)
		return
	}
	user, password, ok := r.BasicAuth()
	g.mu.Lock()
	defer g.mu.Unlock()
	right := !ok
	for _, a := range g.areas {
		right = right || a.user == user && a.password == password
	}
	if !right {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := rand.Text()
	g.tokens[token] = user
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"token": token})
}
