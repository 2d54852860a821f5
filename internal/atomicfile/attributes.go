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

// aclName is the attribute that a directory's default may have given to a new file.
const aclName = "system.posix_acl_access"

// ofContent are attributes that speak of a file's bytes, and are wrong for others.
var ofContent = []string{"security.ima", "security.evm"}

// inherit gives f the owner, the group and the extended attributes of the file called name, which it is about to
// replace. The error lists what f could not be given; it is no reason not to go on.
func inherit(f *os.File, name string, old os.FileInfo) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	is, want := mine.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t)
	var lost []error
	if is.Gid != want.Gid {
		lost = append(lost, named("group", int(want.Gid), f.Chown(-1, int(want.Gid))))
	}
	if is.Uid != want.Uid {
		lost = append(lost, named("owner", int(want.Uid), f.Chown(int(want.Uid), -1)))
	}
	// The owner's change takes bits from the mode, and the mode is part of an access list.
	lost = append(lost, f.Chmod(old.Mode().Perm()), inheritAttributes(f, name))
	return errors.Join(lost...)
}

func named(what string, value any, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %v: %w", what, value, plain(err))
}

// plain is err without the temporary's name.
func plain(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

// inheritAttributes copies the extended attributes: access lists, capabilities, security labels, users' own.
func inheritAttributes(f *os.File, name string) error {
	names, err := attributeNames(name)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return named("extended", "attributes", err)
	}
	fd := int(f.Fd())
	if !slices.Contains(names, aclName) {
		_ = unix.Fremovexattr(fd, aclName) // mostly there is none
	}
	var lost []error
	for _, attribute := range names {
		if !slices.Contains(ofContent, attribute) {
			lost = append(lost, named("attribute", attribute, inheritAttribute(fd, name, attribute)))
		}
	}
	return errors.Join(lost...)
}

func attributeNames(name string) ([]string, error) {
	list, err := grown(func(p []byte) (int, error) { return unix.Llistxattr(name, p) })
	return strings.FieldsFunc(string(list), func(r rune) bool { return r == 0 }), err
}

func inheritAttribute(fd int, name, attribute string) error {
	value, err := grown(func(p []byte) (int, error) { return unix.Lgetxattr(name, attribute, p) })
	if errors.Is(err, unix.ENODATA) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	has, err := grown(func(p []byte) (int, error) { return unix.Fgetxattr(fd, attribute, p) })
	if err == nil && bytes.Equal(has, value) {
		return nil
	}
	return unix.Fsetxattr(fd, attribute, value, 0)
}

// grown calls read with more memory until the answer fits.
func grown(read func(p []byte) (int, error)) ([]byte, error) {
	const most = 128 << 10 // twice what the kernel has of either
	for size := 256; ; size *= 2 {
		p := make([]byte, size)
		n, err := read(p)
		if errors.Is(err, unix.ERANGE) && size < most {
			continue
		}
		return p[:max(n, 0)], err
	}
}
