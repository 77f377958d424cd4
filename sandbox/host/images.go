package host

import (
	"context"
	"fmt"
	"runtime"

	"hallmark.build/executor"
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

// fetchImages makes the images of the two containers that every job has present.
func (h *Host) fetchImages(ctx context.Context, j *job, out *joblog.Log) (build, helper image.Image, err error) {
	wanted := j.payload.Image
	wanted.Name = h.imageName(j)
	build, err = h.fetchImage(ctx, j, record.Image{Role: string(sandbox.Build)}, wanted, out)
	if err != nil {
		return build, helper, err
	}
	helper, err = h.fetchImage(ctx, j, record.Image{Role: string(sandbox.Helper)}, executor.Image{Name: h.cfg.HelperImage}, out)
	if err != nil {
		// The admin's image, so the admin's failure.
		return build, helper, fmt.Errorf("helper image: %s", err)
	}
	return build, helper, nil
}

// fetchImage makes one image of the job's present and unpacked: it asks whether
// the job may have it, under the job's own credentials, and resolves, records
// and pulls it. entry says what the record is to hold besides the image itself:
// the role at least.
func (h *Host) fetchImage(ctx context.Context, j *job, entry record.Image, wanted executor.Image, out *joblog.Log) (image.Image, error) {
	on := platform
	if p := wanted.ExecutorOpts.Docker.Platform; p != "" {
		on = p
	}
	creds := j.credentials
	if entry.Role == string(sandbox.Helper) {
		creds = nil
	} else {
		out.Printf("resolving image %s", wanted.Name)
	}
	img, err := h.images.Resolve(ctx, wanted.Name, on, creds)
	if err != nil {
		return image.Image{}, err
	}
	entry.Name, entry.Reference, entry.Manifest = img.Name, img.Reference, img.Manifest
	entry.Index, entry.Config, entry.Platform = img.Index, img.Config, img.Platform
	if _, err := j.record.Append(record.ImageResolved, entry); err != nil {
		return image.Image{}, err
	}
	if err := h.runtime.Pull(ctx, img.Reference, img.Platform, creds, func(line string) { out.Printf("%s", line) }); err != nil {
		return image.Image{}, fmt.Errorf("pull %s: %w", img.Reference, err)
	}
	return img, nil
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
