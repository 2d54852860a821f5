package local

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLinkOrRename: a name is created with a link, or with a rename if the file system has no
// links.
func TestLinkOrRename(t *testing.T) {
	for _, test := range []struct{ link, rename, want error }{
		{nil, unix.EIO, nil},
		{unix.EEXIST, nil, unix.EEXIST},
		{unix.ENOSPC, nil, unix.ENOSPC},
		{unix.EPERM, nil, nil}, // FAT
		{unix.EPERM, unix.EEXIST, unix.EEXIST},
		{unix.EOPNOTSUPP, unix.ENOENT, unix.ENOENT},
		{unix.EPERM, unix.EINVAL, errors.ErrUnsupported}, // FUSE
		{unix.ENOSYS, unix.ENOSYS, errors.ErrUnsupported},
	} {
		err := linkOrRename(func() error { return test.link }, func() error { return test.rename })
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("linkOrRename where link is %v and rename %v = %v, want %v", test.link, test.rename, err, test.want)
		}
	}
}
