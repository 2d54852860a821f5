package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// aclName is the attribute that a new file may have inherited from its directory's default.
const aclName = "system.posix_acl_access"

// ofContent are attributes that depend on a file's bytes, and are wrong for other bytes.
var ofContent = []string{"security.ima", "security.evm"}

// inheritMetadata gives f the owner, group, mode and extended attributes of the file name, which f will replace. The
// error lists those that it could not set, and does not prevent the replacement.
func inheritMetadata(f *os.File, name string, old os.FileInfo) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	is, want := mine.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t)
	var lost []error
	if is.Gid != want.Gid {
		lost = append(lost, attributeError("group", int(want.Gid), f.Chown(-1, int(want.Gid))))
	}
	if is.Uid != want.Uid {
		lost = append(lost, attributeError("owner", int(want.Uid), f.Chown(int(want.Uid), -1)))
	}
	// Changing the owner clears bits of the mode, and the mode is part of an access list.
	lost = append(lost, f.Chmod(old.Mode().Perm()), inheritAttributes(f, name))
	return errors.Join(lost...)
}

func attributeError(what string, value any, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %v: %w", what, value, withoutPath(err))
}

// withoutPath returns err without the temporary file's name.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

// inheritAttributes copies the extended attributes: access lists, capabilities, security labels, user attributes.
func inheritAttributes(f *os.File, name string) error {
	names, err := attributeNames(name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return attributeError("extended", "attributes", err)
	}
	fd := int(f.Fd())
	if !slices.Contains(names, aclName) {
		_ = unix.Fremovexattr(fd, aclName) // fails if there is none, which is usual
	}
	var lost []error
	for _, attribute := range names {
		if !slices.Contains(ofContent, attribute) {
			lost = append(lost, attributeError("attribute", attribute, inheritAttribute(fd, name, attribute)))
		}
	}
	return errors.Join(lost...)
}

func attributeNames(name string) ([]string, error) {
	list, err := readGrowing(func(p []byte) (int, error) { return unix.Llistxattr(name, p) })
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 }), err
}

func inheritAttribute(fd int, name, attribute string) error {
	value, err := readGrowing(func(p []byte) (int, error) { return unix.Lgetxattr(name, attribute, p) })
	if errors.Is(err, unix.ENODATA) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	has, err := readGrowing(func(p []byte) (int, error) { return unix.Fgetxattr(fd, attribute, p) })
	if err == nil && bytes.Equal(has, value) {
		return nil
	}
	return unix.Fsetxattr(fd, attribute, value, 0)
}

// readGrowing calls read with more memory until the result fits.
func readGrowing(read func(p []byte) (int, error)) ([]byte, error) {
	const most = 128 << 10 // twice the kernel's limit for a list or a value
	for size := 256; ; size *= 2 {
		p := make([]byte, size)
		n, err := read(p)
		if errors.Is(err, unix.ERANGE) && size < most {
			continue
		}
		return p[:max(n, 0)], err
	}
}
