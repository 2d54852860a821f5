package sftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/sftp"
	"cairn/store/storetest"
)

func open(t *testing.T, location string, o sftp.Options) *sftp.Bucket {
	t.Helper()
	at, err := sftp.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	b, err := sftp.New(at, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeBucket(t, b) })
	return b
}

func closeBucket(t *testing.T, b *sftp.Bucket) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, b *sftp.Bucket, name string, data []byte) {
	t.Helper()
	if err := b.Write(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func wantRead(t *testing.T, b *sftp.Bucket, name string, want []byte) {
	t.Helper()
	got, err := b.Read(t.Context(), name, nil, 1<<40)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read(%s) = %d bytes, %v; want %d", name, len(got), err, len(want))
	}
}

// wantUnavailable checks that err is ErrUnavailable and contains why.
func wantUnavailable(t *testing.T, what string, err error, why string) {
	t.Helper()
	if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), why) {
		t.Errorf("%s = %v, want ErrUnavailable with %q", what, err, why)
	}
}

func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%s = %v, want ErrDenied alone", what, err)
	}
}

// files returns the paths of the files and directories below dir.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			path, err = filepath.Rel(dir, path)
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// publicDir returns a directory that every user may enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBucket: the host is an alias of ssh_config, which alone knows its port, user and keys.
func TestBucket(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		return open(t, "sftp://store"+t.TempDir()+"/made/for%20it", sftp.Options{Config: sshd.Config, MakeRoot: true, Connections: 2})
	})
}

// TestBareServer: without OpenSSH's extensions every operation works too, but a write that replaces
// an object leaves a moment without one.
func TestBareServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes many connections")
	}
	o, _ := throughRelay(t, "")
	storetest.Test(t, func(t *testing.T) (store.Reader, storetest.Put) {
		b := open(t, "sftp://bare"+t.TempDir(), o)
		return b, func(name string, data []byte) { write(t, b, name, data) }
	})
	dir := t.TempDir()
	b := open(t, "sftp://bare"+dir, o)
	for _, data := range []string{"first", "the second is longer", ""} {
		write(t, b, "dir/x", []byte(data))
		wantRead(t, b, "dir/x", []byte(data))
	}
	var wg sync.WaitGroup
	var made, replaced atomic.Int64
	for range 8 {
		wg.Go(func() {
			switch err := b.Create(t.Context(), "new", nil); {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, store.ErrExists):
				t.Errorf("Create beside others = %v, want ErrExists", err)
			}
			if b.Write(t.Context(), "dir/x", []byte("last")) == nil {
				replaced.Add(1)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 || replaced.Load() != 8 {
		t.Errorf("of 8, %d created and %d replaced; want 1 and 8", made.Load(), replaced.Load())
	}
	wantRead(t, b, "dir/x", []byte("last"))
	wantFiles(t, dir, "dir", "dir/x", "new")
}

// TestRequests: a write is flushed before it gets its name, and the name is flushed before the
// write returns. A small read costs two round trips. Concurrent requests are sorted in the log.
func TestRequests(t *testing.T) {
	const openssh = "fsync@openssh.com posix-rename@openssh.com hardlink@openssh.com"
	for name, test := range map[string]struct {
		only string
		do   func(*sftp.Bucket) error
		want string
	}{
		"write": {openssh, func(b *sftp.Bucket) error { return b.Write(t.Context(), "x", make([]byte, 40<<10)) },
			"open open fstat write write fsync setstat close posix-rename fsync close"},
		"create": {openssh, func(b *sftp.Bucket) error { return b.Create(t.Context(), "x", nil) },
			"open open fstat fsync setstat close hardlink fsync remove close"},
		"write, bare": {"", func(b *sftp.Bucket) error { return b.Write(t.Context(), "x", nil) },
			"open fstat setstat close rename"},
		"replace, bare": {"", func(b *sftp.Bucket) error { return b.Write(t.Context(), "old", nil) },
			"open fstat setstat close rename lstat remove rename"},
		"create, bare": {"", func(b *sftp.Bucket) error { return b.Create(t.Context(), "x", nil) },
			"open fstat setstat close lstat rename"},
		"make directories": {openssh, func(b *sftp.Bucket) error { return b.Write(t.Context(), "a/x", nil) },
			"open open mkdir stat open fsync open open fstat fsync setstat close posix-rename fsync close close"},
		"read": {openssh, func(b *sftp.Bucket) error {
			_, err := b.Read(t.Context(), "old", nil, 1<<20)
			return err
		}, "open fstat read close"},
		"range": {openssh, func(b *sftp.Bucket) error {
			_, got, err := storetest.ReadRange(t.Context(), b, "old", 1, 2)
			if string(got) != "ld" {
				t.Errorf("the range is %q", got)
			}
			return err
		}, "open fstat read close"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/old", []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			o, log := throughRelay(t, test.only)
			b := open(t, "sftp://host"+dir, o)
			if err := test.do(b); err != nil {
				t.Fatal(err)
			}
			closeBucket(t, b)
			text, err := os.ReadFile(log)
			got := strings.Join(strings.Fields(string(text)), " ")
			got = regexp.MustCompile(`((?: write| read)+) fstat`).ReplaceAllString(got, " fstat$1")
			got = strings.ReplaceAll(got, "setstat fsync", "fsync setstat")
			got = regexp.MustCompile(`(read )+`).ReplaceAllString(got, "read ") // the first answer may end the requests early
			if got != "init "+test.want || err != nil {
				t.Errorf("requests: %s, %v; want init %s", got, err, test.want)
			}
		})
	}
}

// TestCreateKeepsExisting: Create leaves an existing object as it is, with and without hard
// links, and leaves no temporary file.
func TestCreateKeepsExisting(t *testing.T) {
	for _, only := range []string{"", "hardlink@openssh.com"} {
		dir := t.TempDir()
		o, _ := throughRelay(t, only)
		b := open(t, "sftp://host"+dir, o)
		write(t, b, "x", []byte("old"))
		if err := b.Create(t.Context(), "x", []byte("new")); !errors.Is(err, store.ErrExists) {
			t.Errorf("Create = %v, want ErrExists", err)
		}
		wantRead(t, b, "x", []byte("old"))
		wantFiles(t, dir, "x")
	}
}

func TestPermissions(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp -u 0027")
	for mode, want := range map[fs.FileMode]fs.FileMode{0: 0o440, 0o644: 0o640} {
		dir := t.TempDir()
		write(t, open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Mode: mode}), "abcd/x", nil)
		for name, want := range map[string]fs.FileMode{"abcd/x": want, "abcd": fs.ModeDir | 0o750} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
				t.Errorf("with mode %v, %s has %v, %v; want %v", mode, name, info.Mode(), err, want)
			}
		}
	}
}

// TestRootIsNotMade: a mistyped path is an error, and no directory is made.
func TestRootIsNotMade(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	b := open(t, "sftp://store"+dir+"/typo", sftp.Options{Config: sshd.Config})
	for _, name := range []string{"x", "abcd/x"} {
		if err := b.Write(t.Context(), name, nil); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Write(%s) = %v, want ErrNotFound", name, err)
		}
	}
	wantFiles(t, dir)
	for object, err := range b.List(t.Context(), "") {
		t.Errorf("List of no directory yields %v, %v", object, err)
	}
}

// TestHome: paths below /~/ begin in the directory in which the server starts.
func TestHome(t *testing.T) {
	dir := publicDir(t)
	sshd := storetest.NewSSHD(t, "internal-sftp -d "+dir)
	b := open(t, "sftp://store/~/a/b", sftp.Options{Config: sshd.Config, MakeRoot: true})
	write(t, b, "c/x", []byte("x"))
	wantRead(t, open(t, "sftp://store/~", sftp.Options{Config: sshd.Config}), "a/b/c/x", []byte("x"))
	wantFiles(t, dir, "a", "a/b", "a/b/c", "a/b/c/x")
}

// TestNothingIsLeft: an object that cannot get its name leaves no file.
func TestNothingIsLeft(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Connections: 1})
	if err := os.MkdirAll(dir+"/taken/by a directory", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), "taken", []byte("x")); err == nil {
		t.Error("Write onto a directory succeeded")
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := b.Write(ctx, "taken", make([]byte, 4<<20)); !errors.Is(err, context.Canceled) && err == nil {
			t.Errorf("cancelled Write = %v", err)
		}
	}
	closeBucket(t, b) // waits for calls whose caller has returned
	wantFiles(t, dir, "taken", "taken/by a directory")
}

// TestNothingIsLeftByClose: when Close returns, the server has removed the files of cancelled
// Writes.
func TestNothingIsLeftByClose(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	for range 2 {
		b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Connections: 1})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				for n := 0; b.Write(ctx, fmt.Sprintf("%d/%d", i, n), make([]byte, 256<<10)) == nil; n++ {
					cancel()
				}
			})
		}
		wg.Wait()
		closeBucket(t, b)
		for _, name := range files(t, dir) {
			if strings.HasSuffix(name, ".tmp") {
				t.Errorf("%s is left", name)
			}
		}
	}
}

// TestListed: List yields only complete objects: regular files with valid names that are not
// temporary.
func TestListed(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := publicDir(t)
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config})
	write(t, b, "abcd/x", []byte("x"))
	err := errors.Join(
		os.WriteFile(dir+"/abcd/.cairn-HALFWRITTEN.tmp", nil, 0o644), os.WriteFile(dir+"/abcd/bad\xff", nil, 0o644),
		os.Symlink("x", dir+"/abcd/link"), syscall.Mkfifo(dir+"/abcd/pipe", 0o644), os.Symlink("..", dir+"/abcd/up"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // more entries than a packet has, and more directories than are read at once
		if err := os.MkdirAll(fmt.Sprintf("%s/many/%03d/deep/er", dir, i), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/many/%03d/deep/er/x", dir, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for object, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, object.Name)
	}
	slices.Sort(got)
	if len(got) != 301 || got[0] != "abcd/x" || got[300] != "many/299/deep/er/x" {
		t.Errorf("List yields %d names, %q", len(got), got)
	}
}

// TestDepth: an endless tree is an error.
func TestDepth(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	if err := os.MkdirAll(dir+strings.Repeat("/d", 100), 0o755); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, last = range open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config}).List(t.Context(), "") {
	}
	if last == nil {
		t.Error("a listing of a hundred nested directories ended without an error")
	}
}

func TestDenied(t *testing.T) {
	need.Root(t) // without it, sshd accepts no other user
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := publicDir(t)
	mine := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Mode: 0o600})
	write(t, mine, "closed", []byte("x"))
	write(t, mine, "below/x", []byte("x"))
	if err := os.Chmod(dir+"/below", 0o700); err != nil {
		t.Fatal(err)
	}
	b := open(t, "sftp://nobody"+dir, sftp.Options{Config: sshd.Config})
	_, err := b.Read(t.Context(), "closed", nil, 10)
	wantDenied(t, "Read", err)
	for _, name := range []string{"below/x", "below/absent"} {
		_, err := b.Read(t.Context(), name, nil, 10)
		wantDenied(t, "Read", err)
		_, err = b.Stat(t.Context(), name)
		wantDenied(t, "Stat", err)
	}
	wantDenied(t, "Write", b.Write(t.Context(), "new", nil))
	wantDenied(t, "Create", b.Create(t.Context(), "new", nil))
	var last error
	for _, last = range b.List(t.Context(), "") {
	}
	wantDenied(t, "List", last)
}

// TestReadOnly: a read-only server denies writes, and a missing object is still ErrNotFound.
func TestReadOnly(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp -R")
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/x", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config})
	wantRead(t, b, "x", []byte("x"))
	wantDenied(t, "Write", b.Write(t.Context(), "new", nil))
	wantDenied(t, "Write below", b.Write(t.Context(), "a/new", nil))
	wantDenied(t, "Create", b.Create(t.Context(), "new", nil))
	wantFiles(t, dir, "x")
}

// TestChroot is the recipe of docs/stores.md: an account that sees one directory and cannot write.
func TestChroot(t *testing.T) {
	need.Root(t)
	// sshd demands that only root can write to the parent directories, which is not so below /tmp.
	dir, err := os.MkdirTemp("/var/lib", "cairn-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/default.castr", 0o755),
		os.WriteFile(dir+"/default.castr/x", []byte("x"), 0o444))
	if err != nil {
		t.Fatal(err)
	}
	sshd := storetest.NewSSHD(t, "internal-sftp", "Match User nobody", "ChrootDirectory "+dir,
		"ForceCommand internal-sftp -R", "DisableForwarding yes")
	b := open(t, "sftp://nobody/default.castr", sftp.Options{Config: sshd.Config})
	wantRead(t, b, "x", []byte("x"))
	wantDenied(t, "Write", b.Write(t.Context(), "new", nil))
	_, err = open(t, "sftp://nobody/etc", sftp.Options{Config: sshd.Config}).Stat(t.Context(), "passwd")
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Stat outside of the chroot = %v, want ErrNotFound", err)
	}
}

func TestNoServer(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	sshd.Refuse()
	b := open(t, "sftp://store/x", sftp.Options{Config: sshd.Config})
	_, err := b.Read(t.Context(), "x", nil, 10)
	wantUnavailable(t, "Read", err, "Connection refused")
	wantUnavailable(t, "Write", b.Write(t.Context(), "x", nil), "Connection refused")
}

func TestLoginRefused(t *testing.T) {
	for name, test := range map[string]struct {
		subsystem, host, hint string
		denied                bool
	}{
		"unknown host key": {"internal-sftp", "stranger", "connect once with ssh by hand", false},
		"user refused":     {"internal-sftp\nDenyUsers *", "store", "Permission denied", true},
		"no sftp":          {"/nonexistent/program", "store", "", false},
	} {
		sshd := storetest.NewSSHD(t, test.subsystem)
		_, err := open(t, "sftp://"+test.host+"/x", sftp.Options{Config: sshd.Config}).Stat(t.Context(), "x")
		if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied) != test.denied ||
			!strings.Contains(err.Error(), test.hint) || test.hint != "" && errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoSSH(t *testing.T) {
	_, err := open(t, "sftp://store/x", sftp.Options{Program: "/nonexistent/ssh"}).Stat(t.Context(), "x")
	if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "openssh-client") {
		t.Errorf("Stat without ssh = %v, want what to install", err)
	}
}

// script returns a program that runs the given shell commands.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ssh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestEnvironment: ssh gets no credentials of cairn from the environment.
func TestEnvironment(t *testing.T) {
	t.Setenv("CAIRN_BEARER_TOKEN", "hush")
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	file := filepath.Join(t.TempDir(), "env")
	if _, err := open(t, "sftp://store/x", sftp.Options{Program: script(t, "env >"+file)}).Stat(t.Context(), "x"); err == nil {
		t.Error("Stat without a server succeeds")
	}
	got, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(got), "hush") || !strings.Contains(string(got), "SSH_AUTH_SOCK=/agent") {
		t.Errorf("ssh has the environment\n%s%v", got, err)
	}
}

// TestBanner: a server whose shell prints a banner is not reported as unavailable.
func TestBanner(t *testing.T) {
	_, err := open(t, "sftp://store/x", sftp.Options{Program: script(t, "echo Welcome to this server; cat")}).Stat(t.Context(), "x")
	if err == nil || errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "not SFTP") {
		t.Errorf("Stat = %v, want that this is not SFTP", err)
	}
}

// TestOptionInjection: no program is run for a location that ssh could take for an option.
func TestOptionInjection(t *testing.T) {
	ran := filepath.Join(t.TempDir(), "ran")
	t.Setenv("CAIRN_SSH", script(t, "touch "+ran))
	for _, location := range []string{"sftp://-oProxyCommand=true/path", "sftp://-oProxyCommand=true@host/path"} {
		if at, err := sftp.Parse(location); err == nil {
			t.Errorf("Parse(%q) succeeded", location)
			_, _ = open(t, at.String(), sftp.Options{}).Stat(t.Context(), "x")
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("ssh was run")
	}
}

// TestProgram: CAIRN_SSH names another ssh.
func TestProgram(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	t.Setenv("CAIRN_SSH", script(t, `exec ssh -F `+sshd.Config+` "$@"`))
	b := open(t, "sftp://store"+dir, sftp.Options{})
	write(t, b, "x", []byte("x"))
	wantRead(t, b, "x", []byte("x"))
}

// TestConnectionBreaks: a connection breaks during a read, and the next call gets a new one.
func TestConnectionBreaks(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	data := storetest.Bytes(1, 8<<20)
	if err := os.WriteFile(dir+"/x", data, 0o644); err != nil {
		t.Fatal(err)
	}
	sshd.CutAfter(4 << 20)
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Connections: 1})
	got, err := b.Read(t.Context(), "x", nil, 1<<40)
	wantUnavailable(t, "Read", err, "of 8388608 bytes")
	if got != nil {
		t.Errorf("a broken Read gave %d bytes", len(got))
	}
	sshd.CutAfter(0)
	wantRead(t, b, "x", data)
	if n := sshd.Accepted(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestBrokenWrite: the next write removes the temporary file of a write whose connection broke.
func TestBrokenWrite(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	sshd.CutAfter(4 << 20)
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Connections: 1})
	wantUnavailable(t, "Write", b.Write(t.Context(), "x", make([]byte, 8<<20)), "")
	sshd.CutAfter(0)
	write(t, b, "y", []byte("y"))
	wantRead(t, b, "y", []byte("y"))
	wantFiles(t, dir, "y")
}

// TestSilentServer: with a silent server, a call returns when its context ends, or else after the
// patience. The next call gets a new connection, which answers.
func TestSilentServer(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config, Connections: 1, Patience: time.Second})
	write(t, b, "x", []byte("x"))
	sshd.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithCancel(t.Context())
	data := make([]byte, 4<<20)
	calls := map[string]func(context.Context) error{
		"Read":  func(ctx context.Context) error { _, err := b.Read(ctx, "x", nil, 10); return err },
		"Stat":  func(ctx context.Context) error { _, err := b.Stat(ctx, "x"); return err },
		"Write": func(ctx context.Context) error { return b.Write(ctx, "y", data) },
		"List": func(ctx context.Context) (last error) {
			for _, last = range b.List(ctx, "") {
			}
			return last
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			if err := call(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled %s = %v, want context.Canceled", name, err)
			}
		})
	}
	cancel()
	wg.Wait()
	for name, call := range calls {
		wg.Go(func() { wantUnavailable(t, name, call(t.Context()), "does not answer") })
	}
	wg.Wait()
	sshd.Signal(syscall.SIGCONT) // lets the old session end; the new connection has its own
	wantRead(t, b, "x", []byte("x"))
}

// TestSilentAtConnect: a server that accepts the connection but sends nothing is unavailable.
func TestSilentAtConnect(t *testing.T) {
	b := open(t, "sftp://store/x", sftp.Options{Program: script(t, "sleep 1000"), Patience: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Stat(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Stat = %v", err)
	}
	_, err := b.Stat(t.Context(), "x")
	wantUnavailable(t, "Stat", err, "does not answer")
}

// TestUnusedConnection: a connection whose callers have given up ends at once.
func TestUnusedConnection(t *testing.T) {
	b := open(t, "sftp://store/x", sftp.Options{
		Program: script(t, `sleep 0.1; printf '\0\0\0\5\2\0\0\0\3'; cat >/dev/null`), Patience: 200 * time.Millisecond,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Stat(ctx, "x"); !errors.Is(err, ctx.Err()) {
		t.Errorf("Stat = %v, want the context's end", err)
	}
	time.Sleep(600 * time.Millisecond)
}

// TestFewConnections: one connection suffices for calls in a row, and where the server allows only
// one.
func TestFewConnections(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	dir := t.TempDir()
	b := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config})
	for range 5 {
		write(t, b, "x", []byte("x"))
		wantRead(t, b, "x", []byte("x"))
	}
	if n := sshd.Accepted(); n != 1 {
		t.Errorf("calls in a row took %d connections", n)
	}
	sshd.Admit(2)
	other := open(t, "sftp://store"+dir, sftp.Options{Config: sshd.Config})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { wantRead(t, other, "x", []byte("x")) })
	}
	wg.Wait()
}

// TestCloseEnds: Close ends all processes, also with a server that does not answer. Later calls
// fail.
func TestCloseEnds(t *testing.T) {
	for _, silent := range []bool{false, true} {
		sshd := storetest.NewSSHD(t, "internal-sftp")
		b := open(t, "sftp://store"+t.TempDir(), sftp.Options{Config: sshd.Config})
		_, _ = b.Stat(t.Context(), "x")
		if len(children(t, os.Getpid(), "ssh")) == 0 {
			t.Error("there is no ssh, want one")
		}
		if silent {
			sshd.Signal(syscall.SIGSTOP)
		}
		closeBucket(t, b)
		if left := children(t, os.Getpid(), "ssh"); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		if _, err := b.Stat(t.Context(), "x"); err == nil || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Stat after Close = %v", err)
		}
	}
}

// children returns the child processes of a process that have the given name.
func children(t *testing.T, parent int, name string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		text, _ := os.ReadFile(path) // it may have ended
		var pid, ppid int
		var state string
		before, after, _ := strings.Cut(string(text), " ("+name+") ")
		if _, err := fmt.Sscan(after, &state, &ppid); err == nil && ppid == parent && state != "Z" {
			pid, _ = strconv.Atoi(before)
			pids = append(pids, pid)
		}
	}
	return pids
}

const aloneLocation = "CAIRN_TEST_SFTP_ALONE"

// alone is the program that TestKilledProgram kills: it prints that it is connected, and blocks.
func alone() {
	at, err := sftp.Parse(os.Getenv(aloneLocation))
	b, newErr := sftp.New(at, sftp.Options{})
	if err = errors.Join(err, newErr); err == nil {
		_, err = b.Stat(context.Background(), "x")
	}
	fmt.Println(err)
	select {}
}

// TestKilledProgram: ssh ends when the program is killed.
func TestKilledProgram(t *testing.T) {
	sshd := storetest.NewSSHD(t, "internal-sftp")
	t.Setenv("CAIRN_SSH", script(t, `exec ssh -F `+sshd.Config+` "$@"`))
	t.Setenv(aloneLocation, "sftp://store"+t.TempDir())
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	pids := children(t, cmd.Process.Pid, "ssh")
	if len(pids) != 1 {
		t.Fatalf("the program has the processes %v called ssh, want one", pids)
	}
	ssh, err := unix.PidfdOpen(pids[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ssh)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	ended := []unix.PollFd{{Fd: int32(ssh), Events: unix.POLLIN}}
	n, err := unix.Poll(ended, 20_000)
	for errors.Is(err, unix.EINTR) { // a signal of the Go runtime, or of another child
		n, err = unix.Poll(ended, 20_000)
	}
	if n != 1 || err != nil {
		t.Errorf("ssh goes on: %d, %v", n, err)
	}
}
