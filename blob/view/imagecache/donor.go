package imagecache

import (
	"os"
	"path"
	"slices"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
	"cairn/internal/owndir"
)

const (
	maxDonors     = 8        // limit of the donors, whose files are kept open
	maxDonorIndex = 64 << 20 // limit of the size of a donor's index in bytes
	maxDonorMap   = 64 << 20 // limit of the size of a donor's map in bytes
)

// donor is the file of an image that is not open in this Dir. Another process may change it at any time, so each of
// its chunks is verified at each copy.
type donor struct {
	name   string // the image's directory
	index  *blob.Index
	table  *blob.Table
	chunks *bitset.Set // chunks that the file may hold
	file   *os.File
}

// findDonors opens the most recently used images.
func findDonors(root *os.Root) (donors []*donor) {
	for _, name := range byUse(root) {
		if n := openDonor(root, name); n != nil {
			donors = append(donors, n)
		}
		if len(donors) == maxDonors {
			break
		}
	}
	return donors
}

// byUse returns the directories of the images in root, the most recently used first.
func byUse(root *os.Root) (names []string) {
	entries, err := owndir.ReadDir(root, imagesName)
	if err != nil {
		return nil
	}
	used := map[string]time.Time{}
	for _, e := range entries {
		name := path.Join(imagesName, e)
		if info, err := root.Lstat(path.Join(name, mapName)); err == nil {
			used[name] = info.ModTime()
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return used[b].Compare(used[a]) })
	return names
}

// openDonor returns a donor for the image in a directory, or nil if no chunk can be copied from it.
func openDonor(root *os.Root, name string) *donor {
	if info, err := root.Lstat(path.Join(name, indexName)); err != nil || info.Size() > maxDonorIndex {
		return nil
	}
	x := readIndex(root, name)
	if x == nil {
		return nil
	}
	file, err := owndir.ReadFile(root, path.Join(name, mapName), maxDonorMap)
	if err != nil {
		return nil
	}
	state, err := layoutOf(x).latestState(file)
	if err != nil {
		return nil
	}
	n := &donor{name: name, index: x, table: blob.NewTable(x), chunks: bitset.New(x.Len())}
	n.chunks.Load(state.bits)
	for _, data := range []string{rawName, partialName} {
		if n.file, err = owndir.OpenFile(root, path.Join(name, data), os.O_RDONLY); err == nil {
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
