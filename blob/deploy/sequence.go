package deploy

import (
	"context"
	"errors"
	"io"
	"os"

	"cairn/internal/blockdev"
	"cairn/internal/openfile"
)

// ClaimSequence claims an open file of this process for size bytes in order, from its offset on. to writes to the file.
// The bytes are written to the returned writer, and finish ends the use of the file, with the error of the writes or nil.
//
// A block device is checked and claimed as a target. A regular file keeps its bytes behind the written ones, as with
// cat(1).
func (o Options) ClaimSequence(
	ctx context.Context, to io.Writer, file *os.File, size int64,
) (w io.Writer, finish func(error) error, err error) {
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	name := openfile.Node(file, info)
	if blockdev.IsBlockDevice(info) {
		t, passed, err := o.claimOpened(ctx, name, file, size)
		if err != nil {
			return nil, nil, err
		}
		return io.NewOffsetWriter(t, 0), func(err error) error {
			if err == nil {
				err = errors.Join(t.Sync(), passed())
			}
			return errors.Join(err, t.Close())
		}, nil
	}
	if info.Mode().IsRegular() {
		if err := blockdev.RefuseStray(name, o.Force); err != nil {
			return nil, nil, err
		}
	}
	out, err := openfile.NewOutput(to, file)
	if err != nil {
		return nil, nil, err
	}
	out.KeepRest = true
	return out, func(err error) error {
		if err != nil {
			return err
		}
		return out.Close()
	}, nil
}
