package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

const mib = 1 << 20

// image creates a disk image with the slots root-a and root-b.
func image(t *testing.T, sectorSize int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := testimages.GPTDisk(path, sectorSize, testimages.Slots(2*mib, "", "")...); err != nil {
		t.Fatal(err)
	}
	return path
}

// slots returns the partitions of image, without GUIDs.
func slots() []Partition {
	return []Partition{
		{Number: 1, Name: "esp", Start: 1 * mib, Size: 1 * mib},
		{Number: 2, Name: "root-a", Start: 2 * mib, Size: 2 * mib},
		{Number: 3, Name: "root-b", Start: 4 * mib, Size: 2 * mib},
	}
}

// checkSlots compares the partitions with slots.
func checkSlots(t *testing.T, got []Partition, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	plain := append([]Partition{}, got...)
	for i := range plain {
		plain[i].UUID, plain[i].Type, plain[i].Node = "", "", ""
	}
	if diff := cmp.Diff(slots(), plain); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPartitionsOfImage(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		parts, err := Partitions(image(t, sector))
		checkSlots(t, parts, err)
		if err == nil && parts[0].Type != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" {
			t.Errorf("type of the esp = %s", parts[0].Type)
		}
	}
}

func TestPartitionsAsSfdiskMadeThem(t *testing.T) {
	path := looptest.File(t, 16*mib)
	looptest.RunInput(t, `label: gpt
3: start=4096, size=2048, name="with # and =", uuid=11111111-2222-3333-4444-555555555555
7: start=2048, size=2048, name="größe"
`, need.Tool(t, "sfdisk"), "--quiet", path)
	parts, err := Partitions(path)
	if err != nil {
		t.Fatal(err)
	}
	linux := "0fc63daf-8483-4772-8e79-3d69d8477de4"
	want := []Partition{
		{3, "with # and =", "11111111-2222-3333-4444-555555555555", linux, 2 * mib, mib, ""},
		{7, "größe", parts[1].UUID, linux, mib, mib, ""},
	}
	if diff := cmp.Diff(want, parts); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
}

func TestDamagedTables(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		whole := read(t, image(t, sector))
		last := len(whole) - sector
		tests := []struct {
			name   string
			damage func(p []byte)
			want   error
		}{
			{"primary wiped", func(p []byte) { clear(p[:6*sector]) }, nil},
			{"primary header damaged", func(p []byte) { p[sector+60]++ }, nil},
			{"primary entries damaged", func(p []byte) { p[2*sector+60]++ }, nil},
			{"backup wiped", func(p []byte) { clear(p[last:]) }, nil},
			{"both wiped", func(p []byte) { clear(p[:6*sector]); clear(p[last:]) }, ErrNoTable},
			{"both damaged", func(p []byte) { p[sector+60]++; p[last+60]++ }, ErrInvalidTable},
			{"overlap", edit(sector, 1, func(e []byte) { put(e[40:], sectors(5*mib, sector)) }), ErrInvalidTable},
			{"beyond the end", edit(sector, 2, func(e []byte) { put(e[40:], sectors(9*mib, sector)) }), ErrInvalidTable},
			{"over the backup", edit(sector, 2, func(e []byte) { put(e[40:], sectors(7*mib, sector)-1) }), ErrInvalidTable},
			{"over the header", edit(sector, 0, func(e []byte) { put(e[32:], 1) }), ErrInvalidTable},
			{"ends before it starts", edit(sector, 2, func(e []byte) { put(e[40:], 9) }), ErrInvalidTable},
			{"end overflows", edit(sector, 2, func(e []byte) { put(e[40:], 1<<64-1) }), ErrInvalidTable},
			{"too many entries", editHeader(sector, func(h []byte) { put(h[80:], 128<<32|1<<31) }), ErrInvalidTable},
			{"huge entries", editHeader(sector, func(h []byte) { put(h[80:], 1<<63|128) }), ErrInvalidTable},
			{"no entry size", editHeader(sector, func(h []byte) { put(h[80:], 128) }), ErrInvalidTable},
			{"entries beyond the end", editHeader(sector, func(h []byte) { put(h[72:], 1<<40) }), ErrInvalidTable},
		}
		for _, test := range tests {
			p := bytes.Clone(whole)
			test.damage(p)
			parts, err := readTable(bytes.NewReader(p), int64(len(p)), 0)
			if test.want == nil {
				checkSlots(t, parts, err)
			} else if !errors.Is(err, test.want) {
				t.Errorf("sectors of %d bytes, %s: %v, want %v", sector, test.name, err, test.want)
			}
		}
	}
}

func sectors(bytes int64, sector int) uint64 { return uint64(bytes) / uint64(sector) }

func put(p []byte, v uint64) { binary.LittleEndian.PutUint64(p, v) }

// edit changes an entry of the primary table and updates the checksums.
func edit(sector, entry int, change func(e []byte)) func(p []byte) {
	return func(p []byte) {
		change(p[2*sector+128*entry:])
		seal(p, sector)
	}
}

// editHeader changes the header of the primary table and updates the checksums.
func editHeader(sector int, change func(h []byte)) func(p []byte) {
	return func(p []byte) {
		change(p[sector:])
		seal(p, sector)
	}
}

// seal computes the checksums of the primary table, as far as the table is readable.
func seal(p []byte, sector int) {
	header := p[sector : sector+92]
	start := binary.LittleEndian.Uint64(header[72:]) * uint64(sector)
	size := uint64(binary.LittleEndian.Uint32(header[80:])) * uint64(binary.LittleEndian.Uint32(header[84:]))
	if start < uint64(len(p)) && size <= uint64(len(p))-start {
		binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(p[start:start+size]))
	}
	clear(header[16:20])
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header))
}

func TestNoTable(t *testing.T) {
	for _, size := range []int{0, 1, 600, 5000, mib} {
		p := testimages.Random(1, size)
		if _, err := readTable(bytes.NewReader(p), int64(size), 0); !errors.Is(err, ErrNoTable) {
			t.Errorf("%d random bytes: %v, want ErrNoTable", size, err)
		}
	}
}

// padded is a disk with zeros after its first bytes.
type padded []byte

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(p)) {
		copy(b, p[off:])
	}
	return len(b), nil
}

// TestMBR: an MBR differs from the boot sector of FAT, the protective MBR of a GPT, and noise.
func TestMBR(t *testing.T) {
	linux := []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0}
	for name, test := range map[string]struct {
		entry []byte
		want  bool
	}{
		"Linux":          {linux, true},
		"none":           {nil, false},
		"protective":     {[]byte{0, 0, 2, 0, 0xee, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, false},
		"code of FAT's":  {[]byte("\r\nDisk error\r\nx"), false},
		"beyond the end": {[]byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0, 0, 8, 0, 8, 0, 0}, false},
	} {
		disk := make([]byte, 4<<20)
		copy(disk[446:], test.entry)
		copy(disk[510:], []byte{0x55, 0xaa})
		_, err := readTable(bytes.NewReader(disk), int64(len(disk)), 0)
		if !errors.Is(err, ErrNoTable) || errors.Is(err, ErrMBR) != test.want {
			t.Errorf("%s: %v, want ErrMBR: %v", name, err, test.want)
		}
	}
}

func FuzzTable(f *testing.F) {
	const size = 4 * mib
	for _, sector := range []int{512, 4096} {
		path := filepath.Join(f.TempDir(), "disk.img")
		if err := testimages.GPTDisk(path, sector, testimages.Slots(mib, "", "")[1:]...); err != nil {
			f.Fatal(err)
		}
		p, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p[sector:sector+92], p[2*sector:2*sector+4*128], sector == 4096)
	}
	f.Fuzz(func(t *testing.T, header, entries []byte, big bool) {
		sector := 512
		if big {
			sector = 4096
		}
		p := make(padded, 2*sector+128*128)
		copy(p[sector:], header)
		copy(p[2*sector:], entries)
		seal(p, sector)
		parts, err := readTable(p, size, 0)
		if err != nil {
			return
		}
		for i, a := range parts {
			if a.Start < 1024 || a.Size <= 0 || a.Size > size-a.Start {
				t.Errorf("partition %+v lies outside of %d bytes", a, size)
			}
			for _, b := range parts[:i] {
				if a.Start < b.Start+b.Size && b.Start < a.Start+a.Size {
					t.Errorf("partitions %+v and %+v overlap", a, b)
				}
			}
		}
	})
}

func TestFind(t *testing.T) {
	parts := []Partition{
		{Number: 1, Name: "esp", UUID: "aaaa"},
		{Number: 2, Name: "root-a", UUID: "bbbb"},
		{Number: 3, Name: "root-b", UUID: "cccc"},
		{Number: 4, Name: "twin", UUID: "dddd"},
		{Number: 5, Name: "twin", UUID: "eeee"},
		{Number: 6, Name: "3", UUID: "ffff"},
		{Number: 7},
	}
	tests := []struct {
		name   string
		number int
		err    error
	}{
		{"root-a", 2, nil},
		{"2", 2, nil},
		{"cccc", 3, nil},
		{"CCCC", 3, nil},
		{"root-b", 3, nil},
		{"ROOT-B", 0, ErrNotFound},
		{"02", 0, ErrNotFound},
		{"root", 0, ErrNotFound},
		{"", 0, ErrNotFound}, // although the seventh has no name
		{"twin", 0, ErrAmbiguous},
		{"5", 5, nil},
		{"3", 0, ErrAmbiguous}, // the third partition, or the one named 3
	}
	for _, test := range tests {
		got, err := Find(parts, test.name)
		if got.Number != test.number || !errors.Is(err, test.err) {
			t.Errorf("Find(%q) = %d, %v, want %d, %v", test.name, got.Number, err, test.number, test.err)
		}
	}
	_, err := Find(slots(), "root-c")
	want := `partition "root-c": not found (there is 1 "esp", 2 "root-a", 3 "root-b")`
	if err == nil || err.Error() != want {
		t.Errorf("message is %q, want %q", err, want)
	}
}
