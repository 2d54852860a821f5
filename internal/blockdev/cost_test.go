package blockdev

import (
	"bytes"
	"testing"
	"unsafe"

	"cairn/internal/test/looptest"
	"cairn/testimages"
)

// TestDirectWritesCopyNothing checks that aligned memory is written without a copy. The test holds all bounce
// buffers, so a write that needed one would block forever.
func TestDirectWritesCopyNothing(t *testing.T) {
	const size, sector = 4 << 20, 512
	target := openTarget(t, looptest.Attach(t, looptest.File(t, size), sector), Section{})
	direct := target.direct
	if direct == nil {
		t.Fatal("the target is not written past the page cache")
	}
	space := make([]byte, size+sector)
	at := int(-uintptr(unsafe.Pointer(&space[0])) % sector)
	data := space[at:][:size]
	copy(data, testimages.Random(1, size))

	var taken [][]byte
	for range cap(direct.free) {
		taken = append(taken, <-direct.free)
	}
	if n, err := target.WriteAt(data[sector:], sector); n != size-sector || err != nil {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	for _, buffer := range taken {
		direct.free <- buffer
	}
	got := make([]byte, size-sector)
	if _, err := target.ReadAt(got, sector); err != nil || !bytes.Equal(got, data[sector:]) {
		t.Errorf("the target's bytes differ (%v)", err)
	}
}
