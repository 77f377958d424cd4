package images

// Images as they come in the wild.
const (
	Bare   = "bare"   // busybox and nothing else: no accounts, no /tmp, no roots
	Dash   = "dash"   // dash as the only shell, on Debian's C library
	Musl   = "musl"   // a program on musl
	NoExec = "noexec" // an entrypoint that ends without running what it is given
	Odd    = "odd"    // the only shell is at /busybox/sh
)

// wild makes their recipes, most of them from the files of Shell.
func wild(bare, shell []File, probe string) []Recipe {
	with := func(name string, more ...File) Recipe {
		return Recipe{Name: name, Files: append(append([]File{}, shell...), more...)}
	}
	dash := with(Dash, linked(probe, "gcc")...)
	for i, f := range dash.Files {
		if f.Path == "/bin/sh" {
			dash.Files[i] = File{Path: "/bin/sh", Host: "/usr/bin/dash", Mode: 0o755}
		}
	}
	odd := Recipe{Name: Odd, Files: []File{{Path: "/busybox/busybox", Host: busybox, Mode: 0o755}}, Env: []string{"PATH=/busybox"}}
	for _, a := range applets {
		odd.Files = append(odd.Files, File{Path: "/busybox/" + a, Link: "busybox"})
	}
	noExec := with(NoExec, File{Path: "/entrypoint.sh", Mode: 0o755, Data: []byte("#!/bin/sh\necho I have better things to do\n")})
	noExec.Entrypoint = []string{"/entrypoint.sh"}
	return []Recipe{{Name: Bare, Files: bare}, dash, with(Musl, linked(probe, "musl-gcc")...), noExec, odd}
}

// linked is the client of one C library, with that. Without a probe there is none.
func linked(probe, compiler string) []File {
	if probe == "" {
		return nil
	}
	return append(library(compiler), File{Path: "/usr/bin/get", Host: client(probe, compiler), Mode: 0o755})
}
