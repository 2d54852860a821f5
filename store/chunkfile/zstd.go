package chunkfile

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// decodeZstd decodes exactly one frame, directly into dst.
func (d *Decoder) decodeZstd(dst, file []byte) error {
	if len(dst) == 0 {
		return errZeroSize
	}
	if err := checkOneFrame(file); err != nil {
		return err
	}
	n, err := d.zstd.decode(dst, file)
	if err != nil {
		return fmt.Errorf("decompressing: %w", err)
	}
	if n != len(dst) {
		return sizeError(n, len(dst))
	}
	return nil
}

// zstdSize returns the content size in the frame's header, if the header has one.
func zstdSize(file []byte) (size uint64, known bool, err error) {
	var head zstd.Header
	if err := head.Decode(file); err != nil {
		return 0, false, fmt.Errorf("decompressing: %w", err)
	}
	return head.FrameContentSize, head.HasFCS, nil
}

// decodeUnsizedZstd decodes a frame that does not declare its content size, such as casync's, in
// the memory of buf if that is large enough. It first tries a size that most chunks fit, and
// streams the frame if that fails.
func (d *Decoder) decodeUnsizedZstd(buf, file []byte) ([]byte, error) {
	if err := checkOneFrame(file); err != nil {
		return buf, err
	}
	guess := max(256<<10, min(4*len(file), blob.MaxChunkSize))
	buf = resizeBuffer(buf, max(guess, cap(buf)))
	n, err := d.zstd.decode(buf, file)
	if err != nil || n == 0 {
		return streamZstd(buf, file)
	}
	return buf[:n], nil
}

// streamZstd decodes a frame of unknown content size incrementally. Its memory grows with the
// content.
func streamZstd(buf, file []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(file), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(blob.MaxChunkSize))
	if err != nil {
		return buf, fmt.Errorf("decompressing: %w", err)
	}
	defer r.Close()
	out := bytes.NewBuffer(buf[:0])
	n, err := io.Copy(out, io.LimitReader(r, blob.MaxChunkSize+1))
	switch {
	case err != nil:
		return buf, fmt.Errorf("decompressing: %w", err)
	case n == 0 || n > blob.MaxChunkSize:
		return buf, fmt.Errorf("it holds %d bytes or more, which is not a valid chunk size", n)
	}
	return out.Bytes(), nil
}
