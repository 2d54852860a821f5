package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	access "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	readFile  = landlock.AccessFSSet(access.AccessFSReadFile)
	readDir   = readFile | access.AccessFSReadDir
	writeFile = landlock.AccessFSSet(access.AccessFSWriteFile | access.AccessFSTruncate)
	remove    = landlock.AccessFSSet(access.AccessFSRemoveFile)
	removeDir = landlock.AccessFSSet(access.AccessFSRemoveDir)
	writeDir  = readDir | writeFile | remove | removeDir | access.AccessFSMakeReg | access.AccessFSMakeDir | access.AccessFSRefer
	anyDevice = landlock.AccessFSSet(access.AccessFSIoctlDev)
)

// Files limits the files that this process can open to those of the policy, and to those that are open now. It forbids
// new TCP listeners, and TCP connections if the policy does. A kernel that supports less of Landlock limits less, and
// one without it nothing: see Supported.
func Files(p Policy) error {
	rules, err := p.fileRules()
	if err != nil {
		return err
	}
	config := landlock.V9 // handles every right over files, so what no rule allows is denied
	config.HandledAccessNet = access.AccessNetBindTCP
	if !p.Connect {
		config.HandledAccessNet |= access.AccessNetConnectTCP
	}
	config.Scoped = access.ScopeAbstractUnixSocket // a filter of Calls limits signals
	if err := config.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("limiting the files of the process: %w", err)
	}
	return nil
}

// fileRules returns Landlock's rules of the policy. A rule belongs to the file that has the name now.
func (p Policy) fileRules() ([]landlock.Rule, error) {
	rules, err := openFileRules()
	if err != nil {
		return nil, err
	}
	add := func(paths []string, file, dir landlock.AccessFSSet) error {
		for _, path := range paths {
			info, err := os.Stat(path)
			if err == nil && strings.HasPrefix(path, "/proc/") {
				err = keepOpen(path)
			}
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrPermission):
				continue
			case err != nil:
				return err
			case info.IsDir(): // the dot has an automounter mount the directory
				rules = append(rules, landlock.PathAccess(dir, path+"/."))
			case file != 0:
				rules = append(rules, landlock.PathAccess(file, path))
			}
		}
		return nil
	}
	err = errors.Join(add(p.Read, readFile, readDir), add(p.Write, 0, writeDir), add(p.Remove, 0, remove),
		add(p.RemoveDirs, 0, removeDir))
	return rules, err
}

// keepOpen opens a file of /proc for the rest of the process's life. The kernel would otherwise forget the file, and
// with it the rule, and make another one for the same name.
func keepOpen(path string) error {
	_, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	return err
}

// openFileRules returns rules that let the process open again the files that it has open, in the same mode. It does so
// through /proc/self/fd, to read a device past the page cache, for example. Such a rule grants nothing new.
func openFileRules() ([]landlock.Rule, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("finding the open files: %w", err)
	}
	var rules []landlock.Rule
	for _, e := range entries {
		path := filepath.Join("/proc/self/fd", e.Name())
		target, err := os.Readlink(path)
		info, statErr := os.Stat(path)
		if err != nil || statErr != nil || !filepath.IsAbs(target) || info.IsDir() {
			continue // closed since, or not in a file system
		}
		if strings.HasPrefix(target, "/memfd:") {
			continue // of memfd_create(2): Landlock does not limit these files, and takes no rule for them
		}
		if rights := openRights(e.Name(), info); rights != 0 {
			rules = append(rules, landlock.PathAccess(rights, path))
		}
	}
	return rules, nil
}

// openRights returns the rights to open the file of a descriptor again. Only files and block devices have any.
func openRights(descriptor string, info fs.FileInfo) (rights landlock.AccessFSSet) {
	var fd int
	if _, err := fmt.Sscan(descriptor, &fd); err != nil {
		return 0
	}
	kind := info.Mode().Type()
	device := kind&fs.ModeDevice != 0 && kind&fs.ModeCharDevice == 0
	if !info.Mode().IsRegular() && !device {
		return 0
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_PATH != 0 {
		return 0
	}
	if flags&unix.O_ACCMODE != unix.O_WRONLY {
		rights |= readFile
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		rights |= writeFile
	}
	if device {
		rights |= anyDevice
	}
	return rights
}
