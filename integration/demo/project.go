package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The project, pinned by the hash of its module.
const (
	module        = "filippo.io/age"
	moduleVersion = "v1.3.2"
	moduleSum     = "h1:r6RSZLFSMm6rzKepZ7ZAYkKCu14f3/Me8c7uKYh7C8c="
)

// projectDir is where the project's tree is kept between runs.
func projectDir(root string) string {
	return filepath.Join(root, ".cache", "demo", "age-"+moduleVersion)
}

// fetchProject makes the tree that becomes the Git repository: the module's own
// files, and its dependencies vendored, since a hermetic build fetches nothing.
func fetchProject(root string) error {
	dir := projectDir(root)
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	cmd := exec.Command("go", "mod", "download", "-json", module+"@"+moduleVersion)
	cmd.Dir = os.TempDir() // in no module, so that no go.mod has a say
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("download %s: %w", module, err)
	}
	var m struct{ Zip, Sum, Error string }
	if err := json.Unmarshal(out, &m); err != nil {
		return err
	}
	if m.Sum != moduleSum {
		return fmt.Errorf("%s@%s is %s, want %s", module, moduleVersion, m.Sum, moduleSum)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := unzip(m.Zip, module+"@"+moduleVersion+"/", work); err != nil {
		return fmt.Errorf("unpack %s: %w", module, err)
	}
	vendor := exec.Command("go", "mod", "vendor")
	vendor.Dir = work
	vendor.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	if out, err := vendor.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod vendor: %w\n%s", err, out)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	return os.Rename(work, dir)
}

// unzip unpacks a module's zip, whose names all begin with the prefix.
func unzip(file, prefix, dir string) error {
	z, err := zip.OpenReader(file)
	if err != nil {
		return err
	}
	defer z.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range z.File {
		name, ok := strings.CutPrefix(f.Name, prefix)
		if !ok || name == "" {
			return fmt.Errorf("%q lies outside the module", f.Name)
		}
		if err := unzipFile(root, f, filepath.FromSlash(name)); err != nil {
			return err
		}
	}
	return nil
}

func unzipFile(root *os.Root, f *zip.File, name string) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// unpack reads an archive of artifacts.
func unpack(archive []byte) (map[string][]byte, error) {
	z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		files[f.Name] = data
	}
	return files, nil
}
