package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Options selects the section of a path, lifts checks, and limits the wait for the disk's lock. The zero value
// selects the whole path, lifts no check, and does not wait.
type Options struct {
	Section  Section
	Force    []string      // checks to lift, out of Liftable
	LockWait time.Duration // how long to wait for a disk's lock that another program holds
	Notice   func(string)  // receives messages about waiting and about steps that were not possible; may be nil
}

func (o Options) sendNotice(text string) {
	if o.Notice != nil {
		o.Notice(text)
	}
}

// Target is a File that is claimed for writing until Close. Reserve, Truncate and Close must not be called while
// another method is running. All others may be called concurrently.
type Target struct {
	File
	resizable bool          // it is the whole of a regular file
	borrowed  bool          // the caller closes the file
	direct    *directWriter // nil for files, and for devices without direct writes
	lock      *os.File      // the lock on a device's disk; may be nil
}

// OpenTarget claims an existing file or block device for writing. It opens a device exclusively (O_EXCL), which
// the kernel denies while the device is mounted anywhere, and takes the lock on its disk that udev and
// partitioning tools use. It locks a file with flock and with a lock on its bytes (fcntl). It creates nothing.
//
// OpenTarget returns a *RefusedError for a path that is mounted, swap, part of a stacked device or backing a loop
// device, also through its disk or its partitions. It does so, too, for a path that holds the running system, is
// read-only or claimed, or is neither a block device nor a regular file. It returns ErrNotLiftable if o.Force names
// a check that cannot be lifted.
func OpenTarget(ctx context.Context, path string, o Options) (*Target, error) {
	if err := checkForce(o.Force); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && !IsBlockDevice(info) {
		why, hint := "it is "+describeFile(info), "name a partition, or a regular file"
		return nil, &RefusedError{path, CheckNotTarget, why, hint}
	}
	if err := liveKernel().checkTarget(path, info, o.Force); err != nil {
		return nil, err
	}
	lock, err := lockDisk(ctx, path, info, o)
	if err != nil {
		return nil, err
	}
	f, err := openClaimed(path, info)
	if err != nil {
		_ = lock.Close() // of a nil file, Close only returns an error
		return nil, err
	}
	t, err := newTarget(f, path, o.Section)
	if err != nil {
		f.Close()
		_ = lock.Close()
		return nil, err
	}
	t.lock = lock
	return t, nil
}

// TargetOf makes a target of a regular file that the caller has open for reading and writing, and that no other
// program uses. Close leaves f open.
func TargetOf(f *os.File) (*Target, error) {
	t, err := newTarget(f, f.Name(), Section{})
	if err != nil {
		return nil, err
	}
	t.borrowed = true
	return t, nil
}

func newTarget(f *os.File, path string, section Section) (*Target, error) {
	file, err := newFile(f, path, section)
	if err != nil {
		return nil, err
	}
	// After a failed flush the page cache differs from the medium, and a later flush succeeds since the pages
	// are clean.
	if err := dropCache(f, 0, 0); err != nil {
		return nil, fmt.Errorf("dropping cache of %s: %w", path, err)
	}
	t := &Target{File: *file, resizable: !file.device && section.Offset == 0 && section.Size <= 0}
	if !file.device {
		return t, nil
	}
	t.direct, err = openDirectWriter(f)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, fmt.Errorf("opening %s for direct writes: %w", path, err)
	}
	return t, nil
}

// openClaimed opens the file or device that info describes, and claims it.
func openClaimed(path string, info os.FileInfo) (*os.File, error) {
	f, err := openExclusive(path, info)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(info, now) {
		err = fmt.Errorf("opening %s: the path now names another file", path)
	}
	if err == nil {
		err = finishClaim(f, path, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Reserve makes the target at least n bytes long. A whole regular file grows by a hole. Any other target that is
// too short gives a *RefusedError.
func (t *Target) Reserve(n int64) error {
	if n <= t.Size() {
		return nil
	}
	if !t.resizable {
		return TooSmall(t.path, t.Size(), n)
	}
	return t.resizeFile(n)
}

// Truncate shortens a whole regular file to n bytes. Any other target keeps the bytes after them.
func (t *Target) Truncate(n int64) error {
	if !t.resizable || n >= t.Size() {
		return nil
	}
	return t.resizeFile(n)
}

func (t *Target) resizeFile(n int64) error {
	if err := t.f.Truncate(n); err != nil {
		return err
	}
	file, err := newFile(t.f, t.path, Section{})
	if err != nil {
		return err
	}
	t.File = *file
	return nil
}

// WriteAt implements io.WriterAt. It writes nothing if p does not fit into the section. Devices are written past
// the page cache where the kernel supports it. That saves a copy if p's address and its offset in the section are
// equal modulo 4096.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if err := t.checkRange(off, int64(len(p))); err != nil {
		return 0, fmt.Errorf("writing to %s: %w", t.path, err)
	}
	return t.writeAt(p, t.offset()+off)
}

// writeAt is WriteAt with an offset of the file or device instead of the section.
func (t *Target) writeAt(p []byte, off int64) (int, error) {
	if t.direct != nil {
		return t.direct.WriteAt(p, off)
	}
	return t.f.WriteAt(p, off)
}

// Zero makes n bytes at off read as zeros. It punches holes into files, lets devices zero whole blocks, and
// writes zeros where neither is possible.
func (t *Target) Zero(off, n int64) error {
	if err := t.checkRange(off, n); err != nil {
		return fmt.Errorf("zeroing %s: %w", t.path, err)
	}
	if err := t.zeroRange(t.offset()+off, n); err != nil {
		return fmt.Errorf("zeroing %d bytes at %d of %s: %w", n, off, t.path, err)
	}
	return nil
}

// zeroRange is Zero with an offset of the file or device instead of the section.
func (t *Target) zeroRange(off, n int64) error {
	if !t.device {
		return t.zeroOr(punchHole, off, n)
	}
	first, last, err := t.deviceBlocks(off, off+n)
	if err != nil {
		return err
	}
	if first >= last {
		return t.writeZeros(off, n)
	}
	return errors.Join(
		t.writeZeros(off, first-off),
		t.zeroOr(zeroOut, first, last-first),
		t.writeZeros(last, off+n-last),
	)
}

// deviceBlocks returns the part of the range from lo to hi that a device may zero or discard. It has whole sectors,
// and whole pages, so that no page is half in the page cache and half on the medium.
func (t *Target) deviceBlocks(lo, hi int64) (first, last int64, err error) {
	const page = 4096
	sector, err := sectorSize(t.f)
	if err != nil {
		return 0, 0, err
	}
	first, last = wholeBlocks(lo, hi, max(sector, page))
	return first, last, nil
}

// zeroOr zeroes a range with a call of the kernel, or writes zeros where the call is not supported.
func (t *Target) zeroOr(kernels func(f *os.File, off, n int64) error, off, n int64) error {
	if n == 0 {
		return nil
	}
	err := kernels(t.f, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return t.writeZeros(off, n)
	}
	return err
}

func (t *Target) writeZeros(off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k, err := t.writeAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Discard tells the file system or device that n bytes at off are not needed. In a file they become a hole. On
// a device whole sectors and pages are discarded and may then read as any bytes; the rest is kept. The error is
// errors.ErrUnsupported where discarding is not possible.
func (t *Target) Discard(off, n int64) error {
	if err := t.checkRange(off, n); err != nil {
		return fmt.Errorf("discarding bytes of %s: %w", t.path, err)
	}
	if err := t.discardRange(t.offset()+off, n); err != nil {
		return fmt.Errorf("discarding %d bytes at %d of %s: %w", n, off, t.path, err)
	}
	return nil
}

// discardRange is Discard with an offset of the file or device instead of the section.
func (t *Target) discardRange(off, n int64) error {
	if n == 0 {
		return nil
	}
	if !t.device {
		return punchHole(t.f, off, n)
	}
	first, last, err := t.deviceBlocks(off, off+n)
	if err != nil || first >= last {
		return err
	}
	return discardBlocks(t.f, first, last-first)
}

// StartWriteback asks the kernel to start writing the bytes to the medium, and does not wait. Called after each
// write it shortens the final Sync. It guarantees nothing, and does nothing where it is not supported.
func (t *Target) StartWriteback(off, n int64) error {
	if err := t.checkRange(off, n); err != nil {
		return fmt.Errorf("starting writeback of %s: %w", t.path, err)
	}
	if t.direct != nil {
		return nil // direct writes leave nothing dirty in the page cache
	}
	err := startWriteback(t.f, t.offset()+off, n)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("starting writeback of %s: %w", t.path, err)
	}
	return nil
}

// Sync makes all writes durable (fdatasync). Errors of earlier writes are reported here, once. After an error the
// target must be considered damaged: a second Sync that succeeds proves nothing.
func (t *Target) Sync() error {
	if err := syncData(t.f); err != nil {
		return fmt.Errorf("flushing %s: %w", t.path, err)
	}
	return nil
}

// Close ends the claim. It does not flush. It releases the lock first: udev probes a device when a writer closes
// it, and skips it while it is locked.
func (t *Target) Close() error {
	if t.borrowed {
		return nil
	}
	_ = t.lock.Close()
	if t.direct != nil {
		return errors.Join(t.direct.Close(), t.File.Close())
	}
	return t.File.Close()
}
