package deploy

import (
	"context"
	"errors"
	"io"
	"os"

	"cairn/internal/blockdev"
	"cairn/internal/openfile"
)

// Sequence is a claimed output, which is written in order.
type Sequence struct {
	Writer io.Writer
	target *Target // refuses seeds that overlap it
	finish func(error) error
}

// Finish ends the output. err is the error of the job, and nil if all bytes are written.
func (s *Sequence) Finish(err error) error { return s.finish(err) }

// ClaimSequence claims an open file of this process for size bytes in order, from its offset on. to writes to the file.
// The caller must Finish it.
//
// A block device is checked and claimed as a target. A regular file keeps its bytes behind the written ones, as with
// cat(1).
func (o Options) ClaimSequence(
	ctx context.Context, to io.Writer, file *os.File, size int64,
) (*Sequence, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	name := openfile.Node(file, info)
	if blockdev.IsBlockDevice(info) {
		t, passed, err := o.claimOpened(ctx, name, file, size)
		if err != nil {
			return nil, err
		}
		return &Sequence{io.NewOffsetWriter(t, 0), targetInPlace(ShowTarget(openfile.Dash), t, nil), func(err error) error {
			if err == nil {
				err = errors.Join(t.Sync(), passed())
			}
			return errors.Join(err, t.Close())
		}}, nil
	}
	if info.Mode().IsRegular() {
		if err := blockdev.RefuseStray(name, o.Force); err != nil {
			return nil, err
		}
	}
	out, err := openfile.NewOutput(to, file)
	if err != nil {
		return nil, err
	}
	out.KeepRest = true
	return &Sequence{out, streamTarget(openfile.Dash, out), func(err error) error {
		if err != nil {
			return err
		}
		return out.Close()
	}}, nil
}
