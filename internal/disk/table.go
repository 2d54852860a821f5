package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// maxEntriesSize is the largest accepted size in bytes of the partition entries: 8 times the usual 128 entries of
// 128 bytes.
const maxEntriesSize = 128 << 10

// readTable reads the GPT of a disk of size bytes. sector is its logical block size in bytes. If it is 0, readTable
// tries 512 and 4096.
func readTable(r io.ReaderAt, size, sector int64) ([]Partition, error) {
	sectors := []int64{sector}
	if sector == 0 {
		sectors = []int64{512, 4096}
	}
	err := ErrNoTable
	for _, sector := range sectors {
		parts, e := readTableAt(r, size, sector)
		if e == nil {
			return parts, nil
		}
		if !errors.Is(e, ErrNoTable) {
			err = e
		}
	}
	if errors.Is(err, ErrNoTable) && hasMBR(r, size) {
		return nil, ErrMBR
	}
	return nil, err
}

// hasMBR reports whether a disk of size bytes begins with an MBR that has partitions. The protective MBR of a
// GPT does not count. A boot sector of FAT ends with the same two bytes.
func hasMBR(r io.ReaderAt, size int64) (found bool) {
	const table, entry, protective, active = 446, 16, 0xee, 0x80
	var boot [512]byte
	if _, err := r.ReadAt(boot[:], 0); err != nil || boot[510] != 0x55 || boot[511] != 0xaa {
		return false
	}
	for at := table; at < 510; at += entry {
		e := boot[at : at+entry]
		start, count := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		if e[0] != 0 && e[0] != active || e[4] == protective {
			return false
		}
		found = found || e[4] != 0 && start > 0 && count > 0 && int64(start) < size/512
	}
	return found
}

func readTableAt(r io.ReaderAt, size, sector int64) ([]Partition, error) {
	if size < 3*sector {
		return nil, ErrNoTable
	}
	last := size/sector - 1
	primary, err := checkHeader(r, sector)
	if err != nil {
		return nil, err
	}
	backup, err := checkHeader(r, last*sector)
	if err != nil {
		return nil, err
	}
	if !primary && !backup {
		return nil, ErrNoTable
	}
	table, err := decodeTable(view{io.NewSectionReader(r, 0, size)}, int(sector))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidTable, err)
	}
	return convertEntries(table, last, sector)
}

// checkHeader reports whether there is a GPT header at off. It refuses a header that claims too many entries, since
// the library allocates memory for as many as the header claims.
func checkHeader(r io.ReaderAt, off int64) (present bool, err error) {
	var header [92]byte
	if _, err := r.ReadAt(header[:], off); err != nil {
		return false, err
	}
	if string(header[:8]) != "EFI PART" {
		return false, nil
	}
	count, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
	if uint64(count)*uint64(size) > maxEntriesSize {
		return true, fmt.Errorf("%w: it claims %d entries of %d bytes", ErrInvalidTable, count, size)
	}
	return true, nil
}

// decodeTable reads a table with the library, and turns a panic of the library into an error.
func decodeTable(disk view, sector int) (table *gpt.Table, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding panicked: %v", p)
		}
	}()
	return gpt.Read(disk, sector, sector)
}

// view implements the interface that the library expects of a disk. It can only read and seek.
type view struct{ *io.SectionReader }

func (view) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (view) Close() error               { return nil }

// convertEntries checks the entries of a table against a disk whose last sector is last.
func convertEntries(table *gpt.Table, last, sector int64) ([]Partition, error) {
	const headers = 2 // sectors before the first partition: protective MBR and GPT header
	// The last sector holds the backup's header.
	lastUsable := min(uint64(last)-1, table.LastDataSector())
	var parts []Partition
	for _, p := range table.Partitions {
		if p.Start < headers || p.End < p.Start || p.End > lastUsable {
			return nil, fmt.Errorf("%w: partition %d lies in sectors %d to %d, outside the usable %d to %d",
				ErrInvalidTable, p.Index, p.Start, p.End, headers, lastUsable)
		}
		parts = append(parts, Partition{
			Number: p.Index,
			Name:   p.Name,
			UUID:   strings.ToLower(p.GUID),
			Type:   strings.ToLower(string(p.Type)),
			Start:  int64(p.Start) * sector,
			Size:   int64(p.End-p.Start+1) * sector,
		})
	}
	return parts, checkOverlap(parts)
}

func checkOverlap(parts []Partition) error {
	byStart := slices.Clone(parts)
	slices.SortFunc(byStart, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	for i := 1; i < len(byStart); i++ {
		a, b := byStart[i-1], byStart[i]
		if a.Start+a.Size > b.Start {
			return fmt.Errorf("%w: partitions %d and %d overlap", ErrInvalidTable, a.Number, b.Number)
		}
	}
	return nil
}
