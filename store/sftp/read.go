package sftp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/pkg/sftp"

	"cairn/store"
)

// Sizes of read requests. ssh has 2 MiB in flight on a connection: readWindow. Before the size of a
// file is known, the first read requests only firstRead bytes.
const (
	readWindow = 2 << 20
	firstRead  = 128 << 10
)

const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
)

// Stat implements store.Reader.
func (b *Bucket) Stat(ctx context.Context, name string) (size int64, err error) {
	return runOnObject(ctx, b, "reading", name, func(k *call, path string) (int64, error) {
		return fileSize(k.attributes(k.client.Stat(path)))
	})
}

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	data, err := runOnObject(ctx, b, "reading", name, func(k *call, path string) (all []byte, err error) {
		err = k.copyFile(path, wholeFile(limit), func(data []byte) error {
			if all == nil {
				all = data
			} else {
				all = append(all, data...)
			}
			return nil
		})
		return all, err
	})
	if err != nil {
		return nil, err
	}
	return append(dst, data...), nil
}

// Stream implements store.Streamer.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	return b.describeError(ctx, "reading", name, b.streamFile(ctx, b.path(name), wholeFile(limit), use))
}

// StreamRange implements store.RangeStreamer.
func (b *Bucket) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := store.CheckRange(off, n); err != nil {
		return err
	}
	part := store.Part{Offset: off}
	r := fileRange{off: off, n: n, check: func(size int64) error {
		if part.Size = size; off >= size {
			return fmt.Errorf("%d bytes: %w", size, store.ErrRange)
		}
		return nil
	}}
	usePart := func(in io.Reader) error { return use(part, in) }
	return b.describeError(ctx, "reading", name, b.streamFile(ctx, b.path(name), r, usePart))
}

// fileRange is the n bytes of a file from offset off on. check is called with the file's size before
// the first bytes are passed on; its error ends the call.
type fileRange struct {
	off, n int64
	check  func(size int64) error
}

// wholeFile returns the range of a file of at most limit bytes.
func wholeFile(limit int64) fileRange {
	return fileRange{n: limit, check: func(size int64) error {
		if size > limit {
			return fmt.Errorf("%d bytes: %w (%d)", size, store.ErrTooLarge, limit)
		}
		return nil
	}}
}

func (b *Bucket) streamFile(ctx context.Context, path string, r fileRange, use func(io.Reader) error) error {
	inner, cancel := context.WithCancel(ctx)
	from, to := io.Pipe()
	var copying sync.WaitGroup
	defer copying.Wait()
	defer from.Close()
	defer cancel()
	copying.Go(func() {
		_, err := runCall(inner, b, func(k *call) (none struct{}, err error) {
			return none, k.copyFile(path, r, func(data []byte) error {
				k.endCall() // pauses the stall timer while use is slow
				defer k.beginCall()
				_, err := to.Write(data)
				return err
			})
		})
		to.CloseWithError(err)
	})
	in := bufio.NewReader(from)
	if _, err := in.Peek(1); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return use(in)
}

// copyFile passes a range of a file to use in order, in pieces that use may keep. It reads a small
// range in one round trip after the one that opens the file.
func (k *call) copyFile(path string, r fileRange, use func(data []byte) error) error {
	f, err := k.openFile(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	k.runLater(func() { _ = f.Close() })
	var size int64
	var statErr error
	var stat sync.WaitGroup
	stat.Go(func() { size, statErr = fileSize(k.attributes(f.Stat())) })
	data, err := k.readAt(f, r.off, min(firstRead, r.n))
	stat.Wait()
	if statErr != nil {
		return statErr
	}
	if err := r.check(size); err != nil {
		return err
	}
	length := min(r.n, size-r.off)
	data = data[:min(int64(len(data)), length)] // the file may have grown since then
	for got := int64(0); got < length; {
		if err == nil && len(data) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got, length, err)
		}
		if err := use(data); err != nil {
			return err
		}
		got += int64(len(data))
		if err := k.ctx.Err(); err != nil {
			return err
		}
		data, err = k.readAt(f, r.off+got, min(readWindow, length-got))
	}
	return nil
}

// readAt reads up to size bytes at an offset. It returns fewer at the end of the file, or if the
// server sends fewer at once.
func (k *call) readAt(f *sftp.File, off, size int64) ([]byte, error) {
	data := make([]byte, size)
	n, err := f.ReadAt(data, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return data[:n], k.convertError(err)
}

// fileSize returns the size of a regular file.
func fileSize(a *sftp.FileStat, err error) (int64, error) {
	switch {
	case err != nil:
		return 0, err
	case a.Mode&modeType == 0:
		return 0, errors.New("the server does not report whether it is a file")
	case a.Mode&modeType != modeRegular:
		return 0, errors.New("not a regular file")
	case int64(a.Size) < 0:
		return 0, errGarbled
	}
	return int64(a.Size), nil
}
