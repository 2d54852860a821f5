package imagecache

import (
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
)

const (
	maxDonors     = 8        // limit of the donors, whose files are kept open
	maxDonorIndex = 64 << 20 // limit of the size of a donor's index in bytes
)

// donor is the file of an image that is not open in this Dir. Another process may change it at any time, so each of
// its chunks is verified at each copy.
type donor struct {
	index  *blob.Index
	table  *blob.Table
	chunks *bitset.Set // chunks that the file may hold
	file   *os.File
}

// findDonors opens the most recently used images.
func findDonors(images string) (donors []*donor) {
	for _, name := range byUse(images) {
		if n := openDonor(filepath.Join(images, name)); n != nil {
			donors = append(donors, n)
		}
		if len(donors) == maxDonors {
			break
		}
	}
	return donors
}

// byUse returns the names of the images, the most recently used first.
func byUse(images string) (names []string) {
	entries, err := os.ReadDir(images)
	if err != nil {
		return nil
	}
	used := map[string]time.Time{}
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(images, e.Name(), mapName)); err == nil {
			used[e.Name()] = info.ModTime()
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { return used[b].Compare(used[a]) })
	return names
}

// openDonor returns a donor for the image in a directory, or nil if no chunk can be copied from it.
func openDonor(path string) *donor {
	if info, err := os.Stat(filepath.Join(path, indexName)); err != nil || info.Size() > maxDonorIndex {
		return nil
	}
	x := readIndex(path)
	if x == nil {
		return nil
	}
	file, err := os.ReadFile(filepath.Join(path, mapName))
	if err != nil {
		return nil
	}
	state, err := layoutOf(x).latestState(file)
	if err != nil {
		return nil
	}
	n := &donor{index: x, table: blob.NewTable(x), chunks: bitset.New(x.Len())}
	n.chunks.Load(state.bits)
	for _, data := range []string{rawName, partialName} {
		if n.file, err = os.Open(filepath.Join(path, data)); err == nil {
			return n
		}
	}
	return nil
}

func (n *donor) findChunk(c content) int { return findContent(n.index, n.table, c, n.chunks.Has) }

// copyChunk fills dst with a chunk and verifies it. A wrong chunk is not tried again.
func (n *donor) copyChunk(c content, dst []byte) bool {
	i := n.findChunk(c)
	if i < 0 {
		return false
	}
	if _, err := n.file.ReadAt(dst, n.index.At(i).Offset); err != nil || c.algorithm.Sum(dst) != c.digest {
		n.chunks.Remove(i)
		return false
	}
	return true
}

// findContent returns the number of the first chunk with a content, or -1 if it is missing.
func findContent(x *blob.Index, table *blob.Table, c content, has func(i int) bool) int {
	if c.algorithm != x.Algorithm() {
		return -1
	}
	i := table.Find(c.digest)
	if i < 0 || x.At(i).Size != c.size || !has(i) {
		return -1
	}
	return i
}
