package images

import (
	"context"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Names of the images that the tests and the demo use. Go stands on Helper, so
// that the Debian below both is made, pulled and unpacked once.
const (
	Helper  = "helper"  // runs the scripts that GitLab Runner makes
	Go      = "golang"  // the same with Go: compiles programs
	Shell   = "shell"   // busybox: the smallest image that can run a job
	NoShell = "noshell" // a program and nothing else
	Redis   = "redis"   // a database, as a service
	Web     = "web"     // busybox that serves a page, as a service
	User    = "user"    // busybox with a user, an entrypoint and a command of its own
)

// helperPackages are what the runner's scripts call.
var helperPackages = []string{"bash", "ca-certificates", "git", "git-lfs"}

// busybox is the host's static busybox, installed by the package of that name.
const busybox = "/bin/busybox"

// applets that the scripts of jobs call.
var applets = []string{
	"sh", "ash", "cat", "cp", "chmod", "cut", "date", "dd", "df", "echo", "env", "false", "find", "grep", "head", "hostname",
	"id", "ip", "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv", "nc", "nslookup", "nohup", "ping", "printf", "ps", "pwd",
	"rm", "rmdir", "sed", "seq", "setsid", "sha256sum", "sleep", "sort", "stat", "sync", "tail", "tee", "test", "touch", "tr",
	"true", "umount", "uname", "unshare", "wc", "wget", "whoami", "xargs", "traceroute", "tar", "time", "timeout", "usleep", "vi", "od",
}

// Recipes of all images. Probe is a static program that Shell gets at
// /usr/bin/probe, or empty.
func Recipes(probe string) []Recipe {
	shell := []File{{Path: "/bin/busybox", Host: busybox, Mode: 0o755}}
	for _, a := range applets {
		shell = append(shell, File{Path: "/bin/" + a, Link: "busybox"})
	}
	bare := shell[:len(shell):len(shell)]
	accounts := []File{
		{Path: "/etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/home/builder:/bin/sh\n"), Mode: 0o644},
		{Path: "/etc/group", Data: []byte("root:x:0:\nbuilder:x:1000:\n"), Mode: 0o644},
		{Path: "/etc/ssl/certs/ca-certificates.crt", Data: []byte{}, Mode: 0o644},
		{Path: "/root/.keep", Data: []byte{}, Mode: 0o644},
		{Path: "/home/builder/.keep", Data: []byte{}, Mode: 0o644},
	}
	shell = append(shell, accounts...)
	if probe != "" {
		shell = append(shell, File{Path: "/usr/bin/probe", Host: probe, Mode: 0o755})
	}
	entrypoint := File{Path: "/entrypoint.sh", Mode: 0o755, Data: []byte("#!/bin/sh\necho entrypoint was here\nexec \"$@\"\n")}
	helper := Recipe{Name: Helper, Packages: helperPackages}
	return append([]Recipe{
		helper,
		{Name: Go, Base: &helper, Go: true, Env: []string{"GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false"}},
		{Name: Shell, Files: shell},
		{Name: NoShell, Files: []File{{Path: "/app", Host: busybox, Mode: 0o755}}, Entrypoint: []string{"/app"}},
		{Name: Redis, Packages: []string{"redis-server"}, User: "redis", Dir: "/var/lib/redis", Expose: []string{"6379/tcp"},
			Entrypoint: []string{"redis-server"}, Command: []string{"--protected-mode", "no"}},
		{Name: Web, Files: append([]File{{Path: "/www/index.html", Data: []byte("a page\n"), Mode: 0o644}}, shell...), Dir: "/www", Expose: []string{"80/tcp"},
			Env: []string{"FROM_IMAGE=image", "OVER=image"}, Command: []string{"busybox", "httpd", "-f", "-p", "80"}},
		{Name: User, Files: append(append([]File{}, shell...), entrypoint), User: "builder", Entrypoint: []string{"/entrypoint.sh"}, Command: []string{"sh"}},
	}, wild(bare, shell, probe)...)
}

// DockerHelper is the image in which the runner's own docker executor runs the
// scripts that it makes: the helper with the given gitlab-runner in it, under
// the names that the executor calls.
func DockerHelper(runner string) Recipe {
	helper := Recipe{Name: Helper, Packages: helperPackages}
	return Recipe{Name: "docker-helper", Base: &helper, Files: []File{
		{Path: "/usr/bin/gitlab-runner-helper", Host: runner, Mode: 0o755},
		{Path: "/usr/bin/gitlab-runner", Link: "gitlab-runner-helper"},
		// What it makes must be writable for whatever user the job has.
		{Path: "/usr/bin/gitlab-runner-build", Mode: 0o755, Data: []byte("#!/bin/sh\numask 0\nexec bash\n")},
	}}
}

// Named are those of the recipes that have one of the names; none means all.
func Named(recipes []Recipe, names ...string) []Recipe {
	if len(names) == 0 {
		return recipes
	}
	return slices.DeleteFunc(recipes, func(r Recipe) bool { return !slices.Contains(names, r.Name) })
}

// MakeAll makes images and says on log what it took.
func MakeAll(ctx context.Context, cache string, recipes []Recipe, log io.Writer) (map[string]v1.Image, error) {
	out := map[string]v1.Image{}
	for _, r := range recipes {
		img, info, err := Make(ctx, cache, r, log)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(log, "image", info)
		out[r.Name] = img
	}
	return out, nil
}
