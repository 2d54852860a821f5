package release

import (
	"bufio"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/store/locate"
)

// Decode is Open for an index whose file the caller has opened.
func Decode(at locate.Location, file io.Reader) (*blob.Index, error) {
	x, err := blob.Decode(bufio.NewReaderSize(file, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("reading index %s: %w", at, err)
	}
	return x, nil
}
