// Package images makes container images without any outside registry: from
// Debian packages, from the host's Go, and from single programs.
//
// Debian images are made by mmdebstrap from the machine's own apt sources, and
// kept below a cache directory, under a key of all that decides what comes out:
// the packages, the options, and the state of the Debian release that apt knows.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// format changes when an image made by this code would differ from one in the
// cache under the same recipe.
const format = 1

// epoch is the time of every file that we add, and of the images.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A Recipe says what an image is made of, bottom layer first.
type Recipe struct {
	Name string
	// Base is what lies below, instead of a Debian.
	Base *Recipe
	// Packages of Debian, above its smallest system, or above the base. Nil for
	// no Debian at all.
	Packages []string
	// Go adds the host's Go toolchain at /usr/local/go.
	Go bool
	// Files are added by their path in the image.
	Files []File
	Env   []string
	// Entrypoint, Command and User go into the image's configuration.
	Entrypoint, Command []string
	User                string
	Dir                 string   // working directory
	Expose              []string // ports, such as "80/tcp"
}

// A File is one file of an image.
type File struct {
	Path string
	Host string // copied from there; or
	Data []byte // if Host is empty
	Link string // a symbolic link, if not empty
	Mode fs.FileMode
}

// Info says what making an image took.
type Info struct {
	Name   string
	Cached bool
	Took   time.Duration
	Bytes  int64 // of the compressed layers
}

func (i Info) String() string {
	how := fmt.Sprintf("made in %.1f s", i.Took.Seconds())
	if i.Cached {
		how = "cached"
	}
	return fmt.Sprintf("%-8s %4d MB, %s", i.Name, i.Bytes>>20, how)
}

// Make returns the image of a recipe, from the cache directory where it is
// there. Talk goes to log.
func Make(ctx context.Context, cache string, r Recipe, log io.Writer) (v1.Image, Info, error) {
	start := time.Now()
	key, err := r.key(ctx)
	if err != nil {
		return nil, Info{}, err
	}
	dir := filepath.Join(cache, r.Name+"-"+key[:16])
	cached := true
	img, err := load(dir)
	if err != nil {
		cached = false
		if img, err = r.build(ctx, cache, dir, log); err != nil {
			return nil, Info{}, fmt.Errorf("image %s: %w", r.Name, err)
		}
		if err := dropOlder(cache, r.Name, dir); err != nil {
			return nil, Info{}, err
		}
	}
	size, err := layersSize(img)
	return img, Info{Name: r.Name, Cached: cached, Took: time.Since(start), Bytes: size}, err
}

// load opens an image that was kept.
func load(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s: %d images, want one", dir, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// build makes the image and keeps it at dir, whole or not at all.
func (r Recipe) build(ctx context.Context, cache, dir string, log io.Writer) (v1.Image, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	base := empty.Image
	if r.Base != nil {
		var err error
		if base, _, err = Make(ctx, cache, *r.Base, log); err != nil {
			return nil, err
		}
	}
	work, err := os.MkdirTemp(cache, ".making-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)

	var layers []v1.Layer
	add := func(name string, write func(file string) error) error {
		file := filepath.Join(work, name)
		if err := write(file); err != nil {
			return err
		}
		l, err := tarball.LayerFromFile(file)
		layers = append(layers, l)
		return err
	}
	if r.Packages != nil {
		if err := add("debian.tar", func(file string) error {
			if r.Base != nil {
				return addPackages(ctx, base, r.Packages, work, file, log)
			}
			return debian(ctx, r.Packages, work, file, log)
		}); err != nil {
			return nil, err
		}
	}
	if r.Go {
		if err := add("go.tar", func(file string) error { return writeTar(file, goFiles) }); err != nil {
			return nil, err
		}
	}
	if len(r.Files) > 0 {
		if err := add("files.tar", func(file string) error { return writeTar(file, r.addFiles) }); err != nil {
			return nil, err
		}
	}
	img, err := r.assemble(base, layers)
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(work, "oci")
	p, err := layout.Write(kept, empty.Index)
	if err != nil {
		return nil, err
	}
	if err := p.AppendImage(img); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(kept, dir); err != nil {
		return nil, err
	}
	return load(dir)
}

func (r Recipe) assemble(base v1.Image, layers []v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS = runtime.GOARCH, "linux"
	file.Created = v1.Time{Time: epoch}
	file.Config = v1.Config{
		Env:        append([]string{"PATH=" + r.searchPath()}, r.Env...),
		Entrypoint: r.Entrypoint, Cmd: r.Command, User: r.User, WorkingDir: r.Dir,
	}
	for _, port := range r.Expose {
		if file.Config.ExposedPorts == nil {
			file.Config.ExposedPorts = map[string]struct{}{}
		}
		file.Config.ExposedPorts[port] = struct{}{}
	}
	return mutate.ConfigFile(img, file)
}

func (r Recipe) searchPath() string {
	const usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if r.Go {
		return "/usr/local/go/bin:" + usual
	}
	return usual
}

// debianOptions make the system small: nobody reads manuals in a job.
var debianOptions = []string{
	"--variant=minbase", "--mode=root", "--format=tar", "--quiet",
	"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
	"--dpkgopt=path-include=/usr/share/doc/*/copyright",
	`--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/* "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/sources.list`,
}

// debian writes a Debian system to the file, as tar.
func debian(ctx context.Context, packages []string, work, file string, log io.Writer) error {
	sources, err := aptSources()
	if err != nil {
		return err
	}
	suite, err := codename()
	if err != nil {
		return err
	}
	settings := filepath.Join(work, "apt.conf")
	if err := aptSettings(ctx, settings); err != nil {
		return err
	}
	args := append([]string{"--include=" + strings.Join(packages, ","), "--aptopt=" + settings}, debianOptions...)
	args = append(args, suite, file)
	args = append(args, sources...)
	fmt.Fprintf(log, "mmdebstrap %s: %s\n", suite, strings.Join(packages, " "))
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()), "TMPDIR="+work)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w\n%s", err, out.Bytes())
	}
	return nil
}

// aptSources are the files in which this machine says where its packages come
// from: the image's come from there too.
func aptSources() ([]string, error) {
	suite, err := codename()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			if bytes.Contains(data, []byte("debian")) && bytes.Contains(data, []byte(suite)) {
				out = append(out, name)
			}
		}
	}
	if out == nil {
		return nil, errors.New("apt: no Debian sources on this machine")
	}
	return out, nil
}

// aptSettings hands on how this machine reaches its sources (proxies, mostly).
func aptSettings(ctx context.Context, file string) error {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return fmt.Errorf("apt-config: %w", err)
	}
	var keep bytes.Buffer
	for line := range bytes.Lines(out) {
		if bytes.HasPrefix(line, []byte("Acquire::http")) || bytes.HasPrefix(line, []byte("Acquire::Retries")) {
			keep.Write(line)
		}
	}
	return os.WriteFile(file, keep.Bytes(), 0o644)
}

func codename() (string, error) {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("/etc/os-release: no VERSION_CODENAME")
}

// release identifies the state of the archive that apt last saw: every
// repository's Release file has the hashes of its package lists.
func release() ([]string, error) {
	names, err := filepath.Glob("/var/lib/apt/lists/*Release")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []string
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(data)
		out = append(out, hex.EncodeToString(sum[:]))
	}
	return out, nil
}

// key names everything that decides what the image holds.
func (r Recipe) key(ctx context.Context) (string, error) {
	parts := map[string]any{"format": format, "arch": runtime.GOARCH, "recipe": struct {
		Packages, Env, Entrypoint, Command []string
		User                               string
		Go                                 bool
	}{r.Packages, r.Env, r.Entrypoint, r.Command, r.User, r.Go}}
	if r.Dir != "" || r.Expose != nil {
		parts["service"] = []any{r.Dir, r.Expose}
	}
	if r.Base != nil {
		base, err := r.Base.key(ctx)
		if err != nil {
			return "", err
		}
		parts["base"] = base
	}
	if r.Packages != nil {
		suite, err := codename()
		if err != nil {
			return "", err
		}
		state, err := release()
		if err != nil {
			return "", err
		}
		parts["debian"] = []any{suite, state, debianOptions}
	}
	if r.Go {
		out, err := exec.CommandContext(ctx, "go", "version").Output()
		if err != nil {
			return "", fmt.Errorf("go version: %w", err)
		}
		parts["go"] = string(out)
	}
	var files []string
	for _, f := range r.Files {
		sum, err := f.digest()
		if err != nil {
			return "", err
		}
		files = append(files, fmt.Sprintf("%s %o %s %s", f.Path, f.Mode, f.Link, sum))
	}
	parts["files"] = files
	text, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

func (f File) content() ([]byte, error) {
	if f.Host != "" {
		return os.ReadFile(f.Host)
	}
	return f.Data, nil
}

func (f File) digest() (string, error) {
	data, err := f.content()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// dropOlder removes what the cache holds of the same name under other keys.
func dropOlder(cache, name, keep string) error {
	dirs, err := filepath.Glob(filepath.Join(cache, name+"-"+strings.Repeat("[0-9a-f]", 16)))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if dir == keep {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

func layersSize(img v1.Image) (int64, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// writeTar writes a tar file. Directories above each file are made as needed.
func writeTar(file string, fill func(*tarWriter) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := &tarWriter{Writer: tar.NewWriter(f), made: map[string]bool{"/": true, ".": true}}
	if err := fill(w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

type tarWriter struct {
	*tar.Writer
	made map[string]bool // directories
}

func (w *tarWriter) parents(name string) error {
	dir := path.Dir(name)
	if w.made[dir] {
		return nil
	}
	if err := w.parents(dir); err != nil {
		return err
	}
	w.made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: epoch})
}

func (w *tarWriter) file(name string, mode fs.FileMode, size int64, r io.Reader) error {
	if err := w.parents(name); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: int64(mode.Perm()), Size: size, ModTime: epoch}); err != nil {
		return err
	}
	_, err := io.Copy(w, r)
	return err
}

func (w *tarWriter) link(name, target string) error {
	if err := w.parents(name); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(name, "/"), Linkname: target, Mode: 0o777, ModTime: epoch})
}

func (r Recipe) addFiles(w *tarWriter) error {
	for _, f := range r.Files {
		if f.Link != "" {
			if err := w.link(f.Path, f.Link); err != nil {
				return err
			}
			continue
		}
		data, err := f.content()
		if err != nil {
			return err
		}
		if err := w.file(f.Path, f.Mode, int64(len(data)), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

// goFiles are those parts of the Go tree that building programs needs.
func goFiles(w *tarWriter) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	root, err := filepath.EvalSymlinks(strings.TrimSpace(string(out)))
	if err != nil {
		return err
	}
	for _, part := range []string{"VERSION", "go.env", "bin", "lib", "pkg/include", "pkg/tool", "src"} {
		if err := addTree(w, root, part); err != nil {
			return err
		}
	}
	return nil
}

func addTree(w *tarWriter, root, part string) error {
	return filepath.WalkDir(filepath.Join(root, part), func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "testdata":
			return filepath.SkipDir
		case !d.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return w.file(path.Join("/usr/local/go", filepath.ToSlash(rel)), info.Mode(), info.Size(), f)
	})
}
