package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// Options say what of the path is the target, which checks it need not pass, and how long others are waited for. The
// zero value is all of it, all checks, and no waiting.
type Options struct {
	Section  Section
	Force    []string      // names out of Liftable
	LockWait time.Duration // for the lock on a device's disk that other programs hold
	Notice   func(string)  // is told what is waited for, and what could not be done; may be nil
}

func (o Options) notice(text string) {
	if o.Notice != nil {
		o.Notice(text)
	}
}

// Target is a File that is claimed for writing until Close. Reserve, Truncate and Close may not be called while
// another method is running; all others may be called concurrently.
type Target struct {
	File
	resizable bool          // all of a regular file
	borrowed  bool          // Close is not ours to do
	direct    *directWriter // past the page cache; nil where that is not possible, and for files
	lock      *os.File      // on the whole disk, of a device; may be nil
}

// OpenTarget claims an existing file or block device for writing: a device exclusively (O_EXCL), which the
// kernel also denies while it is mounted anywhere, and its disk by the lock that udev and partitioning tools take; a
// file by flock. It is a *RefusedError when the path is in
// use or not fit to be a target: mounted, swap, part of a stacked device or backing a loop device (also
// through its disk or its partitions), holding the running system, read-only, claimed, or no block device or
// regular file. ErrNotLiftable is about o.Force. Nothing is created.
func OpenTarget(ctx context.Context, path string, o Options) (*Target, error) {
	if err := checkForce(o.Force); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && !IsBlockDevice(info) {
		return nil, &RefusedError{path, CheckNotTarget, "it is " + kind(info), "name a partition, or a regular file"}
	}
	if err := live().refuse(path, info, o.Force); err != nil {
		return nil, err
	}
	lock, err := lockDisk(ctx, path, info, o)
	if err != nil {
		return nil, err
	}
	t, err := openLocked(path, info, o)
	if err != nil {
		unlock(lock)
		return nil, err
	}
	t.lock = lock
	return t, nil
}

// openLocked is OpenTarget with the disk locked.
func openLocked(path string, info os.FileInfo, o Options) (*Target, error) {
	f, err := openClaimed(path, info)
	if err != nil {
		return nil, err
	}
	t, err := newTarget(f, path, o.Section)
	if err != nil {
		f.Close()
	}
	return t, err
}

func unlock(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// TargetOf makes a target of a regular file that the caller has open for reading and writing, alone, and goes
// on to own: Close leaves f open.
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
	if err := forgetLost(f); err != nil {
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

// forgetLost lets go of what the page cache holds. After a flush that failed that is not what is on the medium, and
// a later flush, which finds it clean, does not say so.
func forgetLost(f *os.File) error {
	err := dropCache(f, 0, 0) // to the end
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// openClaimed opens what info describes, and claims it.
func openClaimed(path string, info os.FileInfo) (*os.File, error) {
	f, err := openExclusive(path, info)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(info, now) {
		err = fmt.Errorf("opening %s: the name changed its meaning meanwhile", path)
	}
	if err == nil {
		err = claim(f, path, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Reserve makes the target at least n bytes long: a whole regular file grows by a hole, anything else that is
// shorter is a *RefusedError.
func (t *Target) Reserve(n int64) error {
	if n <= t.Size() {
		return nil
	}
	if !t.resizable {
		return TooSmall(t.path, t.Size(), n)
	}
	return t.resize(n)
}

// Truncate ends a whole regular file after n bytes; anything else keeps what lies behind them.
func (t *Target) Truncate(n int64) error {
	if !t.resizable || n >= t.Size() {
		return nil
	}
	return t.resize(n)
}

func (t *Target) resize(n int64) error {
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

// WriteAt is as io.WriterAt has it. It never writes outside the section: then nothing is written. Devices are
// written past the page cache where the kernel can do that; it saves a copy when p lies in memory as the bytes
// lie in the section, modulo 4096.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if err := t.check(off, int64(len(p))); err != nil {
		return 0, fmt.Errorf("writing to %s: %w", t.path, err)
	}
	return t.writeAt(p, t.offset()+off)
}

// writeAt takes an offset of the file or device, not of the section.
func (t *Target) writeAt(p []byte, off int64) (int, error) {
	if t.direct != nil {
		return t.direct.WriteAt(p, off)
	}
	return t.f.WriteAt(p, off)
}

// Zero makes n bytes at off read as zeros: holes are punched into files, devices zero their own blocks, and
// zeros are written where neither is possible.
func (t *Target) Zero(off, n int64) error {
	if err := t.check(off, n); err != nil {
		return fmt.Errorf("zeroing %s: %w", t.path, err)
	}
	if err := t.zero(t.offset()+off, n); err != nil {
		return fmt.Errorf("zeroing %d bytes at %d of %s: %w", n, off, t.path, err)
	}
	return nil
}

// zero takes offsets of the file or device, not of the section.
func (t *Target) zero(off, n int64) error {
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

// deviceBlocks is the part of a device's bytes from lo to hi that it can be told to change by itself: whole
// sectors, and whole pages, so that none is half in the page cache and half on the medium.
func (t *Target) deviceBlocks(lo, hi int64) (first, last int64, err error) {
	const page = 4096
	sector, err := sectorSize(t.f)
	if err != nil {
		return 0, 0, err
	}
	first, last = wholeBlocks(lo, hi, max(sector, page))
	return first, last, nil
}

// zeroOr lets the kernel zero a range in its own way, or writes zeros if it has none here.
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

// Discard says that n bytes at off are not needed any more. Those of a file become a hole. Of a device the whole
// sectors and pages among them are discarded, and may read as anything afterwards; the rest is kept. The error
// is an errors.ErrUnsupported where that is not possible.
func (t *Target) Discard(off, n int64) error {
	if err := t.check(off, n); err != nil {
		return fmt.Errorf("discarding of %s: %w", t.path, err)
	}
	if err := t.discard(t.offset()+off, n); err != nil {
		return fmt.Errorf("discarding %d bytes at %d of %s: %w", n, off, t.path, err)
	}
	return nil
}

// discard takes offsets of the file or device, not of the section.
func (t *Target) discard(off, n int64) error {
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
	return discard(t.f, first, last-first)
}

// StartWriteback asks the kernel to begin writing the bytes to the medium, and does not wait for it. Called
// behind the writer it keeps the last Sync short. It proves nothing; where it is not supported nothing
// happens.
func (t *Target) StartWriteback(off, n int64) error {
	if err := t.check(off, n); err != nil {
		return fmt.Errorf("starting writeback of %s: %w", t.path, err)
	}
	if t.direct != nil {
		return nil // nothing waits in the page cache
	}
	err := startWriteback(t.f, t.offset()+off, n)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("starting writeback of %s: %w", t.path, err)
	}
	return nil
}

// Sync makes all that was written durable (fdatasync). Errors of earlier writes surface here, once: after an
// error the target must be taken for damaged, and a second Sync that succeeds proves nothing.
func (t *Target) Sync() error {
	if err := syncData(t.f); err != nil {
		return fmt.Errorf("flushing %s: %w", t.path, err)
	}
	return nil
}

// Close ends the claim. It does not flush. The lock ends first: udev looks at a device when a writer closes it, and
// leaves it alone while it is locked.
func (t *Target) Close() error {
	if t.borrowed {
		return nil
	}
	unlock(t.lock)
	if t.direct != nil {
		return errors.Join(t.direct.Close(), t.File.Close())
	}
	return t.File.Close()
}
