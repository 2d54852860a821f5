package chunkfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"

	"cairn/blob"
)

var errXZDamaged = errors.New("xz: its structure is damaged")

// decodeXZ decodes the single block of an xz stream (The .xz File Format 1.0.4). It parses the
// container itself, because xz.Reader allocates the dictionary that a block declares, up to 4 GiB.
// A block of n bytes never refers back further than n bytes.
func decodeXZ(dst, file []byte) error {
	const sizes, lzma2, largestDictionary = 3 << 6, "\x21\x01", 40
	block, size, err := xzBlock(file)
	if err != nil {
		return err
	}
	if size != uint64(len(dst)) {
		return fmt.Errorf("xz: it has %d bytes, not %d", size, len(dst))
	}
	headSize := 4*int(block[0]) + 4
	if headSize < 8 || headSize > len(block) || !endsInCRC32(block[:headSize]) {
		return errXZDamaged
	}
	if block[1]&^sizes != 0 {
		return fmt.Errorf("xz: %w: filters other than LZMA2", errors.ErrUnsupported)
	}
	head := bytes.NewBuffer(block[2 : headSize-4 : headSize-4])
	for range block[1]>>7 + block[1]>>6&1 { // skip the optional sizes, which the index has too
		_, _ = binary.ReadUvarint(head)
	}
	filter := head.Next(3)
	if len(filter) < 3 || string(filter[:2]) != lzma2 || filter[2] > largestDictionary || !blob.AllZero(head.Bytes()) {
		return errXZDamaged
	}
	in := bytes.NewReader(block[headSize:])
	r, err := lzma.Reader2Config{DictCap: max(lzma.MinDictCap, len(dst))}.NewReader2(in)
	if err == nil {
		_, err = io.ReadFull(r, dst)
	}
	if err != nil {
		return fmt.Errorf("xz: decompressing: %w", err)
	}
	_, err = r.Read(make([]byte, 1))
	want := append(make([]byte, in.Len()&3), xzCheck(file[7], dst)...) // after padding
	if !errors.Is(err, io.EOF) || !bytes.Equal(block[len(block)-in.Len():], want) {
		return errors.New("xz: its content does not match its size or check")
	}
	return nil
}

// xzBlock returns the block of a stream and the size of its content, and checks everything around
// the block.
func xzBlock(file []byte) (block []byte, size uint64, err error) {
	const frame, leastIndex = 12, 8 // frame is the size of the stream's header, and of its footer
	end := len(file) - frame
	if end < frame+leastIndex || len(file)%4 != 0 || string(file[end+10:]) != "YZ" {
		return nil, 0, errors.New("xz: its end is damaged")
	}
	start := end - int(min(4*int64(binary.LittleEndian.Uint32(file[end+4:]))+4, int64(end-frame)))
	flags, footer, index := file[6:8], bytes.Clone(file[end+4:end+10]), file[start:end-4]
	if sum := file[end : end+4]; flags[0] != 0 || !endsInCRC32(file[6:frame]) || !bytes.Equal(footer[4:], flags) ||
		!endsInCRC32(append(footer, sum...)) || !endsInCRC32(file[start:end]) || len(index) == 0 || index[0] != 0 {
		return nil, 0, errXZDamaged
	}
	if index[1] != 1 {
		return nil, 0, fmt.Errorf("xz: %w: other than one block", errors.ErrUnsupported)
	}
	block, rest := file[frame:start], bytes.NewBuffer(index[2:])
	unpadded, _ := binary.ReadUvarint(rest)
	size, err = binary.ReadUvarint(rest)
	if err != nil || len(block) == 0 || (unpadded+3)&^3 != uint64(len(block)) || !blob.AllZero(rest.Bytes()) {
		return nil, 0, errXZDamaged
	}
	return block, size, nil
}

func xzCheck(kind byte, data []byte) []byte {
	switch kind {
	case 1:
		return binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(data))
	case 4:
		return binary.LittleEndian.AppendUint64(nil, crc64.Checksum(data, crc64.MakeTable(crc64.ECMA)))
	case 10:
		sum := sha256.Sum256(data)
		return sum[:]
	}
	return nil
}

// endsInCRC32 reports whether b ends in the CRC32 of the bytes before. Data with its CRC32 appended
// always has the same CRC32.
func endsInCRC32(b []byte) bool { return crc32.ChecksumIEEE(b) == 0x2144df1c }
