package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/record"
)

// create starts all containers at once. The helper's may be there already.
func (h *Host) create(ctx context.Context, j *job, build image.Image, helper *ahead) error {
	close(helper.placed)
	config, err := h.runtime.ImageConfig(ctx, build.Reference)
	if err != nil {
		return err
	}
	if j.user, j.entrypoint, err = h.identity(j, config); err != nil {
		return err
	}
	j.workDir = config.WorkingDir
	j.env[sandbox.Build] = merged(environment(config.Env, ""), j.payload.BuildEnv(buildsDir, h.cfg.RunnerVersion))
	mounts, err := j.mounts(sandbox.Build, jobHostname(j.payload))
	if err != nil {
		return err
	}
	spec := h.spec(j, sandbox.Build, build.Reference, mounts)
	spec.Dirs = dirsOf(config)
	specs := []sandbox.Spec{spec}
	for _, s := range j.services {
		if spec, err = h.serviceSpec(j, s); err != nil {
			return err
		}
		specs = append(specs, spec)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, spec := range specs {
		g.Go(func() error { return h.start(gctx, j, spec) })
	}
	g.Go(func() error { return helper.made(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	j.env[sandbox.Helper] = helper.env
	return j.noteImage(record.Image{Role: string(sandbox.Helper)}, helper.image)
}

func (h *Host) start(ctx context.Context, j *job, spec sandbox.Spec) (err error) {
	if spec.NetNS, err = j.border.Namespace(networkOf(spec.Role)); err != nil {
		return fmt.Errorf("border: %w", err)
	}
	c, err := h.runtime.Create(ctx, spec)
	if err != nil {
		return fmt.Errorf("%s container: %w", spec.Role, err)
	}
	j.keep(spec.Role, c) // even when another one fails: teardown takes all
	return nil
}

func (h *Host) spec(j *job, role sandbox.Role, reference string, mounts []sandbox.Mount) sandbox.Spec {
	return sandbox.Spec{
		Session: j.session, Role: role, Image: reference, Hostname: jobHostname(j.payload),
		IDs: j.ids, Limits: j.limits.forRole(role), Scratch: j.scratch(role), Mounts: mounts,
		ReadOnly: role == sandbox.Helper || h.cfg.ReadOnlyRoot, CA: j.border.CA(),
	}
}

// networkOf is the role whose network namespace a container is in.
func networkOf(role sandbox.Role) sandbox.Role {
	if role == sandbox.Helper {
		return role
	}
	return sandbox.Build
}

func jobHostname(j *executor.Job) string { return fmt.Sprintf("job-%d", j.ID) }

// environment is what a stage starts with but for the job's variables: those the
// script exports by itself, and the entrypoint of a tenant's image gets besides.
func environment(image []string, home string) []string {
	env := append([]string(nil), image...)
	if !hasKey(env, "PATH") {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if home != "" {
		env = append(env, "HOME="+home)
	}
	return append(env, containerd.TrustEnv()...)
}

func hasKey(env []string, key string) bool {
	for _, kv := range env {
		if len(kv) > len(key) && kv[:len(key)+1] == key+"=" {
			return true
		}
	}
	return false
}

// mounts are those that all containers have: the workspace, and the names that
// resolve to the border, or to services where they are.
func (j *job) mounts(role sandbox.Role, name string) ([]sandbox.Mount, error) {
	hosts := "127.0.0.1\tlocalhost " + name + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if networkOf(role) == sandbox.Build && len(j.services) > 0 {
		hosts += "127.0.0.1\t" + buildName + " " + jobHostname(j.payload) + "\n"
		for _, s := range j.services {
			hosts += "127.0.0.1\t" + strings.Join(s.names, " ") + "\n"
		}
	}
	files := map[string]string{
		"resolv.conf": "nameserver 127.0.0.1\noptions attempts:1 timeout:5\n",
		"hosts":       hosts,
		"hostname":    name + "\n",
	}
	mounts := j.space.Mounts()
	for file, content := range files {
		path := filepath.Join(j.dir, string(role)+"-"+file)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, err
		}
		mounts = append(mounts, sandbox.Mount{Source: path, Target: "/etc/" + file, ReadOnly: true})
	}
	return mounts, nil
}
