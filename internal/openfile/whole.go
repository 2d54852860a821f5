package openfile

import (
	"context"
	"errors"
	"os"

	"cairn/internal/atomicfile"
)

// CheckOutput reports, before a job, why WriteFile could not write to path after it.
func CheckOutput(path string) error {
	switch {
	case Standard(path, Stdout) == Dash:
		return RefuseClosed(Stdout, os.Stdout)
	case IsStream(path):
		return nil
	}
	return atomicfile.Check(path)
}

// WriteFile replaces the content of a file by data, or writes data to a stream as OpenOutput opens it. lost reports the
// attributes of a replaced file that the new file could not be given; it does not end the write.
func WriteFile(ctx context.Context, path string, data []byte) (lost, err error) {
	out, err := OpenOutput(ctx, path)
	if err != nil {
		return nil, err
	}
	if out != nil {
		_, err = out.Write(data)
		return nil, errors.Join(err, out.Close())
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	err = f.Commit()
	return f.Lost(), err
}
