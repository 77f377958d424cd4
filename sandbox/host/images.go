package host

import (
	"context"
	"fmt"
	"runtime"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/record"
)

// platform is the only one whose images are run.
const platform = "linux/" + runtime.GOARCH

func (h *Host) imageName(j *job) string {
	if name := j.payload.Image.Name; name != "" {
		return name
	}
	return h.cfg.DefaultImage
}

// resolve turns both image names into digests and records them.
func (h *Host) resolve(ctx context.Context, j *job, out *joblog.Log) (build, helper image.Image, err error) {
	wanted := platform
	if p := j.payload.Image.ExecutorOpts.Docker.Platform; p != "" {
		wanted = p
	}
	name := h.imageName(j)
	out.Printf("resolving image %s", name)
	if build, err = h.images.Resolve(ctx, name, wanted, j.credentials); err != nil {
		return build, helper, err
	}
	if helper, err = h.images.Resolve(ctx, h.cfg.HelperImage, platform, nil); err != nil {
		// The admin's image, so the admin's failure.
		return build, helper, fmt.Errorf("helper image: %s", err)
	}
	for _, i := range []struct {
		role sandbox.Role
		img  image.Image
	}{{sandbox.Build, build}, {sandbox.Helper, helper}} {
		_, err := j.record.Append(record.ImageResolved, record.Image{
			Role: string(i.role), Name: i.img.Name, Reference: i.img.Reference, Manifest: i.img.Manifest,
			Index: i.img.Index, Config: i.img.Config, Platform: i.img.Platform,
		})
		if err != nil {
			return build, helper, err
		}
	}
	return build, helper, nil
}

// credentials are those that GitLab sent along for a registry.
func (j *job) credentials(registry string) (user, password string, ok bool) {
	for _, c := range j.payload.Credentials {
		if c.Type == "registry" && c.URL == registry {
			return c.Username, c.Password, true
		}
	}
	return "", "", false
}

func (h *Host) pull(ctx context.Context, j *job, build, helper image.Image, out *joblog.Log) error {
	progress := func(line string) { out.Printf("%s", line) }
	if err := h.runtime.Pull(ctx, build.Reference, build.Platform, j.credentials, progress); err != nil {
		return fmt.Errorf("pull %s: %w", build.Reference, err)
	}
	if err := h.runtime.Pull(ctx, helper.Reference, helper.Platform, nil, progress); err != nil {
		return fmt.Errorf("pull helper image %s: %w", helper.Reference, err)
	}
	return nil
}
