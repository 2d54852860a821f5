package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
)

// Access lists of a file (u::rw,u:1:r,g::-,m::r,o::-) and a default list of a directory
// (u::rwx,g::rwx,u:2:rwx,m::rwx,o::-).
const (
	accessList  = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	defaultList = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x02\x00\x00\x00\x04\x00\x07\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
)

// attributed creates a file with attributes if the file system supports them.
func attributed(t *testing.T, attributes map[string]string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	for attribute, value := range attributes {
		if err := unix.Setxattr(name, attribute, []byte(value), 0); err != nil {
			t.Skipf("setting %s: %v", attribute, err)
		}
	}
	return name
}

func wantAttribute(t *testing.T, name, attribute, want string) {
	t.Helper()
	p := make([]byte, 1<<16)
	n, err := unix.Getxattr(name, attribute, p)
	if got := string(p[:max(n, 0)]); err != nil || got != want {
		t.Errorf("%s is %q, %v, want %q", attribute, got, err, want)
	}
}

func replace(t *testing.T, name string) *File {
	t.Helper()
	f, err := Resume(name, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("new"); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReplacedFileKeepsAttributes(t *testing.T) {
	want := map[string]string{"user.small": "value", "user.empty": "", "user.large": strings.Repeat("x", 1500), aclName: accessList}
	name := attributed(t, want)
	if err := replace(t, name).Lost(); err != nil {
		t.Errorf("Lost = %v", err)
	}
	for attribute, value := range want {
		wantAttribute(t, name, attribute, value)
	}
}

// TestNoListIsInherited: a file without an access list gets none from its directory.
func TestNoListIsInherited(t *testing.T) {
	name := attributed(t, nil)
	if err := unix.Setxattr(filepath.Dir(name), "system.posix_acl_default", []byte(defaultList), 0); err != nil {
		t.Skip(err)
	}
	if err := replace(t, name).Lost(); err != nil {
		t.Errorf("Lost = %v", err)
	}
	if n, err := unix.Getxattr(name, aclName, make([]byte, 100)); !errors.Is(err, unix.ENODATA) {
		t.Errorf("there is an access list of %d bytes, %v", n, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode = %v, %v", info.Mode(), err)
	}
}

func TestReplacedFileKeepsOwner(t *testing.T) {
	need.Root(t)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_raw, permitted
	name := attributed(t, nil)
	if err := os.Chown(name, 1234, 2345); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(name, "security.capability", []byte(capability), 0); err != nil {
		t.Fatal(err)
	}
	if err := replace(t, name).Lost(); err != nil {
		t.Errorf("Lost = %v", err)
	}
	wantAttribute(t, name, "security.capability", capability)
	wantOwner(t, name, 1234, 2345)
}

func wantOwner(t *testing.T, name string, uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid || info.Mode() != 0o640 {
		t.Errorf("%d:%d %v, want %d:%d -rw-r-----", st.Uid, st.Gid, info.Mode(), uid, gid)
	}
}

// TestLost: an unprivileged process replaces the file nevertheless, and Lost returns the lost attributes.
func TestLost(t *testing.T) {
	need.Root(t)
	name := attributed(t, map[string]string{"user.small": "value"})
	err := errors.Join(os.Chown(name, 1234, 2345), os.Chmod(name, 0o646),
		os.Chmod(filepath.Dir(name), 0o777), os.Chmod(filepath.Dir(filepath.Dir(name)), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan *File)
	go func() { // on a thread that ends with the goroutine
		runtime.LockOSThread()
		f, err := Create(name, 0o600)
		_, _ = unix.SetfsuidRetUid(1000)
		if err == nil {
			err = f.Commit()
		}
		if err != nil {
			t.Error(err)
		}
		done <- f
	}()
	lost := (<-done).Lost()
	if lost == nil || !errors.Is(lost, unix.EPERM) || !strings.Contains(lost.Error(), "owner 1234: ") {
		t.Errorf("Lost = %v, want the owner and EPERM", lost)
	}
}
