package store_test

import (
	"strings"
	"testing"

	"cairn/store"
)

func TestChunkObject(t *testing.T) {
	d := numbered(1)
	for _, packed := range []bool{false, true} {
		got, isPacked, ok := store.ChunkObject(store.ObjectName(d, packed))
		if got != d || isPacked != packed || !ok {
			t.Errorf("ChunkObject(ObjectName(%v, %v)) = %v, %v, %v", d, packed, got, isPacked, ok)
		}
	}
	name := store.ObjectName(d, true)
	for _, other := range []string{
		"", "x", name[5:], "0000" + name[4:], strings.ToUpper(name), name + ".tmp", "a/" + name, name[:4] + "/" + name[:8],
		name[:69] + ".xz", "/" + name[5:], name[:3] + name[4:],
	} {
		if _, _, ok := store.ChunkObject(other); ok {
			t.Errorf("ChunkObject(%q) takes it for a chunk's", other)
		}
	}
}

func TestMisnamedChunk(t *testing.T) {
	name := store.ObjectName(numbered(1), true)
	for n, want := range map[string]bool{
		"ffff/" + name[5:]: true, strings.ToUpper(name[:69]) + ".cacnk": true, name[5:]: true, name[5:69]: true, "a/b/" + name: true,
		"README": false, name + ".tmp": false, name[:69] + ".1234.tmp": false, "0000/abc.cacnk": false,
	} {
		if got := store.MisnamedChunk(n); got != want {
			t.Errorf("MisnamedChunk(%q) = %v, want %v", n, got, want)
		}
	}
}
