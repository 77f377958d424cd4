package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox/containerd/initproto"
)

const (
	passwd = "# comment\nroot:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\nbroken\nbad:x:abc:0::/:\ndev:x:1000:1001:dev:/home/dev:/bin/sh\n" +
		"big:x:70000:1:x:/:\nnohome:x:5:6\nrelative:x:7:8:x:home:\nhigh:x:4294967295:0::/:\nnul\x00:x:9:9::/:\n"
	group = "root:x:0:root\nwheel:x:10:root,dev\nagain:x:10:dev\nstaff:x:50:\nbroken\nbad:x:zz:dev\nhuge:x:70000:nohome\n"
)

// image makes an /etc.
func image(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLookup(t *testing.T) {
	etc := image(t, map[string]string{"passwd": passwd, "group": group})
	for _, c := range []struct {
		in   string
		want user
	}{
		{"", user{0, 0, []uint32{0, 10}, "/root"}},
		{"root", user{0, 0, []uint32{0, 10}, "/root"}},
		{"0", user{0, 0, []uint32{0, 10}, "/root"}},
		{"dev", user{1000, 1001, []uint32{10}, "/home/dev"}},
		// A number is a number, even if the image has a user of that name.
		{"1000", user{1000, 1001, []uint32{10}, "/home/dev"}},
		{"0001000", user{1000, 1001, []uint32{10}, "/home/dev"}},
		{"dev:staff", user{1000, 50, nil, "/home/dev"}},
		{"dev:7", user{1000, 7, nil, "/home/dev"}},
		{"4321", user{4321, 0, nil, "/"}},
		{"4321:1234", user{4321, 1234, nil, "/"}},
		{"65535:65535", user{65535, 65535, nil, "/"}},
		{"nohome:0", user{5, 0, nil, "/"}},
		{"relative", user{7, 8, nil, "/"}},
	} {
		got, err := lookup(etc, c.in, 65535)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
		}
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(user{})); d != "" {
			t.Errorf("%q: %s", c.in, d)
		}
	}
	if got, err := lookup(t.TempDir(), "", 65535); err != nil || got.uid != 0 || got.home != "/" {
		t.Errorf("image without users: %+v, %v", got, err)
	}
}

func TestLookupRefuses(t *testing.T) {
	etc := image(t, map[string]string{"passwd": passwd, "group": group})
	for _, in := range []string{
		":", "dev:", ":staff", "nobody", "dev:nobody", "broken", "bad", "big", "70000", "0:70000", "high", "4294967295", "4294967296",
		"-1", "+1", "1 ", " 1", "0x10", "1e3", "nohome", "dev:staff:wheel", "nul", "nul\x00",
	} {
		if got, err := lookup(etc, in, 65535); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
	huge := image(t, map[string]string{"passwd": strings.Repeat("#\n", maxAccounts), "group": group})
	if _, err := lookup(huge, "0", 65535); err == nil {
		t.Error("read a huge passwd")
	}
	many := image(t, map[string]string{"passwd": passwd, "group": groupsOf("dev", maxGroups+1)})
	if _, err := lookup(many, "dev", 65535); err == nil {
		t.Error("took more groups than there may be")
	}
	for name, make := range map[string]func(path string) error{
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o666) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"device":    func(p string) error { return os.Symlink("/dev/zero", p) },
		"loop":      func(p string) error { return os.Symlink("passwd", p) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, "passwd")); err != nil {
			t.Fatal(err)
		}
		if got, err := lookup(dir, "0", 65535); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func groupsOf(member string, n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("g:x:" + itoa(i) + ":" + member + "\n")
	}
	return b.String()
}

func itoa(i int) string {
	if i < 10 {
		return string(rune('0' + i))
	}
	return itoa(i/10) + itoa(i%10)
}

func FuzzLookup(f *testing.F) {
	f.Add(passwd, group, "dev:staff")
	f.Add("a:b:1:2:c:/d:e", "a:b:1:a", "1")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, passwd, group, in string) {
		etc := image(t, map[string]string{"passwd": passwd, "group": group})
		got, err := lookup(etc, in, 65535)
		if err != nil {
			if got.uid != 0 || got.groups != nil {
				t.Fatalf("an error with a user: %+v", got)
			}
			return
		}
		for _, id := range append(got.groups, got.uid, got.gid) {
			if id > 65535 {
				t.Fatalf("%+v", got)
			}
		}
		if len(got.groups) > maxGroups || !strings.HasPrefix(got.home, "/") {
			t.Fatalf("%+v", got)
		}
		if n, ok := number(in); ok && in != "" && n != got.uid {
			t.Fatalf("%q became %d", in, got.uid)
		}
	})
}

func TestCommand(t *testing.T) {
	dir := image(t, map[string]string{"a/tool": "", "b/tool": "", "c/tool/x": ""})
	if err := os.Chmod(filepath.Join(dir, "b/tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := strings.Join([]string{"", ".", "relative", dir + "/c", dir + "/a", dir + "/b"}, ":")
	for name, want := range map[string]string{
		"tool": dir + "/b/tool", "nope": "", "/any/path": "/any/path", "./x": "./x", "": "", "..": "",
	} {
		if got := command(name, path); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestValue(t *testing.T) {
	env := []string{"A=1", "AB=2", "A=3"}
	if value(env, "A") != "3" || value(env, "AB") != "2" || value(env, "B") != "" {
		t.Error("wrong variable")
	}
}

func TestStores(t *testing.T) {
	ca := []byte("-----BEGIN CERTIFICATE-----\nb3Vycw==\n-----END CERTIFICATE-----\n")
	root := image(t, map[string]string{stores[0]: "theirs", stores[2]: "theirs", "dev/hallmark/x": ""})
	if err := os.Symlink("certs/ca-certificates.crt", filepath.Join(root, "etc/ssl/cert.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, stores[1]), 0o755); err != nil { // a directory in its place
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(stores[3])), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, stores[3]), 0o666); err != nil {
		t.Fatal(err)
	}
	names, err := trust(root, ca)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{stores[0], stores[2]}, names); d != "" {
		t.Error(d)
	}
	for name, want := range map[string]string{
		stores[0]: "theirs\n" + string(ca), stores[2]: "theirs\n" + string(ca), initproto.CAFile: string(ca),
		initproto.RootsFile: "\n" + string(ca), // the image's has no certificate
	} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestStoreIsMade(t *testing.T) {
	ca := []byte("ca\n")
	root := image(t, map[string]string{"dev/hallmark/x": ""})
	names, err := trust(root, ca)
	if err != nil || len(names) != 1 || names[0] != stores[0] {
		t.Fatalf("%v, %v", names, err)
	}
	if got, err := os.ReadFile(filepath.Join(root, stores[0])); err != nil || string(got) != "ca\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReplace(t *testing.T) {
	dir := image(t, map[string]string{"target": "untouched", "plain": "old", "full/x": ""})
	if err := os.Symlink("target", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(dir, "link.hallmark")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "plain", "new/dir/file"} {
		if err := replace(filepath.Join(dir, name), []byte("new")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() || info.Size() != 3 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "target")); err != nil || string(got) != "untouched" {
		t.Errorf("followed a link: %q, %v", got, err)
	}
	if err := replace(filepath.Join(dir, "full"), nil); err == nil || blame(err) != initproto.BadImage {
		t.Errorf("replaced a directory: %v", err)
	}
}

func TestBlame(t *testing.T) {
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := whose(there+"/not", syscall.ENOTDIR); got != initproto.NotRun {
		t.Errorf("a path through a file: %v", got)
	}
	if got := whose(there+"-not", syscall.ENOENT); got != initproto.NoCommand {
		t.Errorf("a missing file: %v", got)
	}
	for _, err := range []error{syscall.ENOSPC, syscall.EIO, syscall.ENOMEM, errors.New("?")} {
		if blame(err) != initproto.System || whose(there, err) != initproto.System {
			t.Errorf("%v is the image's fault", err)
		}
	}
	for _, err := range []error{syscall.ENOEXEC, syscall.EACCES, syscall.E2BIG, &os.PathError{Err: syscall.ENOENT}} {
		if whose(there, err) != initproto.NotRun {
			t.Errorf("%v is not the image's fault", err)
		}
	}
}

func TestCertificates(t *testing.T) {
	block := func(kind, data string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(data)}))
	}
	got := certificates([]byte("junk\n" + block("CERTIFICATE", "one") + block("PRIVATE KEY", "no") + "# text\n" + block("CERTIFICATE", "two") + block("CERTIFICATE", "")))
	if d := cmp.Diff([][]byte{[]byte("one"), []byte("two")}, got); d != "" {
		t.Error(d)
	}
}

func TestDER(t *testing.T) {
	for n, want := range map[int][]byte{0: {4, 0}, 1: {4, 1}, 127: {4, 127}, 128: {4, 0x81, 128}, 255: {4, 0x81, 255}, 256: {4, 0x82, 1, 0}, 70000: {4, 0x83, 1, 0x11, 0x70}} {
		got := der(4, make([]byte, n))
		if !bytes.HasPrefix(got, want) || len(got) != len(want)+n {
			t.Errorf("%d: % x", n, got[:min(len(got), 6)])
		}
	}
}

// unpacked are packets as the host might send them.
func TestUnpackRefuses(t *testing.T) {
	encode := func(m initproto.Message) []byte {
		b, err := initproto.Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = 1 << 20 // never used: unpack does not touch them
		}
		return syscall.UnixRights(fds...)
	}
	stage := encode(initproto.Start{Seq: 1, Shell: true, Dir: "/"})
	signal := encode(initproto.Signal{Seq: 1, Signal: 15})
	if _, err := unpack(stage, rights(3), 0); err != nil {
		t.Error(err)
	}
	if _, err := unpack(signal, nil, 0); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		data, oob []byte
		flags     int
	}{
		"no descriptors":        {stage, nil, 0},
		"two descriptors":       {stage, rights(2), 0},
		"four descriptors":      {stage, rights(4), 0},
		"descriptor for others": {signal, rights(1), 0},
		"truncated":             {stage, rights(3), syscall.MSG_TRUNC},
		"descriptors truncated": {stage, rights(3), syscall.MSG_CTRUNC},
		"junk beside":           {stage, []byte{1, 2, 3}, 0},
		"junk":                  {[]byte("junk"), nil, 0},
		"credentials beside":    {signal, syscall.UnixCredentials(&syscall.Ucred{}), 0},
	} {
		if p, err := unpack(c.data, c.oob, c.flags); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	b, err := initproto.Encode(initproto.Start{Seq: 1, Shell: true, Dir: "/"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, syscall.UnixRights(0, 1, 2))
	f.Add([]byte{1, 3, 1, 15}, []byte{})
	f.Fuzz(func(t *testing.T, data, oob []byte) {
		p, err := unpack(data, oob, 0)
		if err != nil {
			return
		}
		if _, start := p.message.(initproto.Start); start != (len(p.fds) == initproto.Stdio) || !start && len(p.fds) != 0 {
			t.Fatalf("%+v", p)
		}
	})
}

// Messages out of order end init.
func TestOrder(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	stage := packet{message: initproto.Start{Seq: 1, Shell: true, Dir: "/", User: "no-such-user-here"}}
	setup := packet{message: initproto.Setup{MaxID: 10}}
	environ := packet{message: initproto.Environ{Env: []string{"A=1"}}}
	for name, c := range map[string]struct {
		state server
		p     packet
	}{
		"environ before set-up": {server{}, environ},
		"environ in a stage":    {server{ready: true, running: 5}, environ},
		"environ beyond limit":  {server{ready: true, envSize: initproto.MaxEnviron - 3}, environ},
		"stage before set-up":   {server{}, stage},
		"set-up again":          {server{ready: true}, setup},
		"stage beside a stage":  {server{ready: true, running: 5, last: 0}, stage},
		"number used before":    {server{ready: true, last: 1}, stage},
		"answer of init's own":  {server{ready: true}, packet{message: initproto.Ready{}}},
		"exit of init's own":    {server{ready: true}, packet{message: initproto.Exited{Seq: 1}}},
		"refusal of init's own": {server{ready: true}, packet{message: initproto.Failed{Seq: 1, Reason: initproto.System}}},
	} {
		s := c.state
		s.host = pair[0]
		if err := s.obey(c.p); err == nil {
			t.Errorf("%s: obeyed", name)
		}
	}
	// A stage that cannot start is answered, and the next may come. A signal
	// for one that is over does nothing.
	s := server{host: pair[0], ready: true}
	for seq := uint32(1); seq < 3; seq++ {
		if err := s.obey(packet{message: initproto.Start{Seq: seq, Shell: true, Dir: "/", User: "no-such-user-here"}}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, initproto.MaxMessage)
		n, err := syscall.Read(pair[1], buf)
		if err != nil {
			t.Fatal(err)
		}
		m, err := initproto.Decode(buf[:n])
		if f, ok := m.(initproto.Failed); err != nil || !ok || f.Seq != seq || f.Reason != initproto.NoUser {
			t.Errorf("%#v, %v", m, err)
		}
	}
	if err := s.obey(packet{message: initproto.Signal{Seq: 9, Signal: 15}}); err != nil {
		t.Error(err)
	}
}

// Outside of a pid namespace of its own the program refuses to run: kill(-1)
// would be the host's end.
func TestRefusesToRunOutside(t *testing.T) {
	if os.Getpid() == 1 {
		t.Skip("this test is the first process itself")
	}
	if err := harden(); err == nil {
		t.Fatal("hardened")
	}
	if code := run(); code != initproto.ExitHarden {
		t.Errorf("status %d", code)
	}
}
