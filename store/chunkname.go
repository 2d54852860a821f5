package store

import (
	"path"
	"strings"

	"cairn/blob"
)

// packedSuffix is the suffix of the name of a compressed chunk, whatever the codec. The name of a
// plain chunk has no suffix.
const packedSuffix = ".cacnk"

// ObjectName returns the name of a chunk's object, compressed or plain: abcd/<64 hexadecimal
// digits>, as in casync.
func ObjectName(d blob.Digest, packed bool) string {
	hex := d.String()
	if packed {
		return hex[:4] + "/" + hex + packedSuffix
	}
	return hex[:4] + "/" + hex
}

// ChunkObject parses an object's name as ObjectName returns it, and reports whether it is such a name.
func ChunkObject(name string) (d blob.Digest, packed, ok bool) {
	plain, packed := strings.CutSuffix(name, packedSuffix)
	dir, hex, cut := strings.Cut(plain, "/")
	if !cut || len(dir) != 4 || !strings.HasPrefix(hex, dir) {
		return blob.Digest{}, false, false
	}
	d, err := blob.ParseDigest(hex)
	return d, packed, err == nil
}

// MisnamedChunk reports whether a name that ChunkObject refuses ends like a chunk's name.
func MisnamedChunk(name string) bool {
	ext := path.Ext(name)
	_, err := blob.ParseDigest(strings.ToLower(strings.TrimSuffix(path.Base(name), ext)))
	return err == nil && (ext == "" || ext == packedSuffix)
}
