package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"
)

// install runs in a mount namespace of its own. It lays a writable layer over an
// unpacked image, lends it this machine's apt with all that it knows, and
// installs packages. What was written is in the layer.
const install = `set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$ROOT"
mkdir -p "$ROOT/usr/share/man/man1" # Java's packages link manuals, and fail if they cannot
mkdir -p "$ROOT/usr/sbin" "$ROOT/var/lib/apt/lists" "$ROOT/var/cache/apt" "$ROOT/etc/apt"
mount --bind -o ro /var/lib/apt/lists "$ROOT/var/lib/apt/lists"
for dir in /dev /proc; do mount --bind "$dir" "$ROOT$dir"; done
for dir in /etc/apt /var/cache/apt /tmp /var/log; do mkdir -p "$ROOT$dir"; mount -t tmpfs tmpfs "$ROOT$dir"; done
cp -a /etc/apt/. "$ROOT/etc/apt"
mkdir -p "$ROOT/var/cache/apt/archives/partial" "$ROOT/var/log/apt"
[ -e "$ROOT/etc/resolv.conf" ] || : >"$ROOT/etc/resolv.conf"
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d" # no daemon starts in here
chmod 755 "$ROOT/usr/sbin/policy-rc.d"
exec chroot "$ROOT" apt-get install -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \
	-o Debug::NoLocking=1 -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= "$@"
`

// addPackages writes, as tar, the layer that installing packages in an image makes.
func addPackages(ctx context.Context, base v1.Image, packages []string, work, file string, log io.Writer) error {
	dirs := map[string]string{}
	for _, name := range []string{"lower", "upper", "work", "root"} {
		dirs[name] = filepath.Join(work, name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			return err
		}
	}
	if err := unpack(ctx, base, dirs["lower"]); err != nil {
		return err
	}
	fmt.Fprintf(log, "apt-get install %s\n", strings.Join(packages, " "))
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", install, "install"}, packages...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()),
		"LOWER="+dirs["lower"], "UPPER="+dirs["upper"], "WORK="+dirs["work"], "ROOT="+dirs["root"])
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get install: %w\n%s", err, out)
	}
	return writeTar(file, func(w *tarWriter) error { return w.layer(dirs["upper"]) })
}

// unpack writes an image's files into a directory.
func unpack(ctx context.Context, img v1.Image, dir string) error {
	files := mutate.Extract(img)
	defer files.Close()
	cmd := exec.CommandContext(ctx, "tar", "-x", "--numeric-owner", "-C", dir)
	cmd.Stdin = files
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("unpack: %w\n%s", err, errs.Bytes())
	}
	return nil
}

// leftOut are directories that packages leave things in which no job needs.
var leftOut = []string{"usr/share/man", "usr/share/doc", "usr/share/locale", "usr/share/info", "var/cache", "var/log", "tmp", "etc/apt", "var/lib/apt", "etc/resolv.conf"}

// layer writes the upper directory of an overlay as a layer of an image.
func (w *tarWriter) layer(upper string) error {
	links := map[uint64]string{}
	return filepath.WalkDir(upper, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == upper {
			return err
		}
		rel, err := filepath.Rel(upper, name)
		if err != nil {
			return err
		}
		for _, out := range leftOut {
			if rel == out {
				if d.IsDir() {
					return filepath.SkipDir
				}
				return nil
			}
		}
		return w.layerEntry(name, rel, links)
	})
}

// layerEntry writes one of them. Links are the files so far that have further names.
func (w *tarWriter) layerEntry(name, rel string, links map[uint64]string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	target := ""
	switch mode := info.Mode(); {
	case mode&fs.ModeCharDevice != 0 && stat.Rdev == 0: // what was there is gone
		gone := filepath.Join(filepath.Dir(rel), ".wh."+filepath.Base(rel))
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: gone, ModTime: epoch})
	case mode&fs.ModeSymlink != 0:
		if target, err = os.Readlink(name); err != nil {
			return err
		}
	case !mode.IsRegular() && !mode.IsDir():
		return nil
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime, h.AccessTime, h.ChangeTime, h.Uname, h.Gname = rel, epoch, epoch, epoch, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if info.Mode().IsRegular() && stat.Nlink > 1 {
		if first, ok := links[stat.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.WriteHeader(h)
		}
		links[stat.Ino] = rel
	}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
