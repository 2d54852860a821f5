//go:build !linux

package blockdev

import (
	"context"
	"errors"
	"os"
)

// errDevice is what every use of a block device ends with here.
var errDevice = errors.New("block devices are supported on Linux only")

func deviceSize(*os.File) (int64, error) { return 0, errDevice }
func sectorSize(*os.File) (int64, error) { return 0, errDevice }

func zeroOut(*os.File, int64, int64) error        { return errors.ErrUnsupported }
func punchHole(*os.File, int64, int64) error      { return errors.ErrUnsupported }
func startWriteback(*os.File, int64, int64) error { return errors.ErrUnsupported }
func dropCache(*os.File, int64, int64) error      { return errors.ErrUnsupported }

func discard(*os.File, int64, int64) error { return errors.ErrUnsupported }

func blockSize(*os.File) (int64, error)                       { return 0, errors.ErrUnsupported }
func cloneRange(_, _ *os.File, srcOff, dstOff, n int64) error { return errors.ErrUnsupported }
func openDirect(*os.File, int64) (directFile, error)          { return nil, errors.ErrUnsupported }

func openDirectWriter(*os.File) (writer, error) { return nil, errors.ErrUnsupported }

func seekData(_ *os.File, off, end int64) (first, last int64, err error) { return off, end, nil }

func syncData(f *os.File) error { return f.Sync() }

func refuse(_ string, info os.FileInfo, _ []string) error {
	if IsBlockDevice(info) {
		return errDevice
	}
	return nil
}

// RefuseStray refuses nothing here.
func RefuseStray(_ string, force []string) error { return checkForce(force) }

func lockDisk(context.Context, string, os.FileInfo, Options) (*os.File, error) { return nil, nil }

// RereadPartitions is an errors.ErrUnsupported here.
func (t *Target) RereadPartitions() error { return errors.ErrUnsupported }

func openExclusive(path string, _ os.FileInfo) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR, 0)
}

func claim(*os.File, string, os.FileInfo) error { return nil }

// Overlaps says why two opened sections share bytes, and "" if they do not. Links and mounts that make one
// file of two are seen, nothing below files is.
func Overlaps(a, b *File) (why string, err error) {
	same, err := sameFile(a, b)
	if err != nil || !same {
		return "", err
	}
	if a.offset() < b.offset()+b.Size() && b.offset() < a.offset()+a.Size() {
		return a.path + " and " + b.path + " are the same bytes", nil
	}
	return "", nil
}

func sameFile(a, b *File) (bool, error) {
	x, err := a.f.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.f.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(x, y), nil
}

func inodeWords(os.FileInfo) string { return "" }

func deviceIdentity(os.FileInfo) (string, error) { return "", errDevice }
