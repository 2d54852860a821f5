package imagecache

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cairn/blob"
	"cairn/internal/bitset"
)

const (
	maxDonors     = 8        // images that nobody here serves and that give chunks to those that are
	maxDonorIndex = 64 << 20 // bytes of such an image's index
)

// donor is an image's file that this process has not opened as its own. Somebody else may change it at any
// time, so that each chunk of it is proven when it is used.
type donor struct {
	index *blob.Index
	table *blob.Table
	bits  *bitset.Set
	file  *os.File
}

// findDonors opens the images that were used last.
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

// addDonor takes a file as a donor, in the place of the oldest if there are enough. The caller holds mu.
func (d *Dir) addDonor(n *donor) {
	all := append([]*donor{n}, d.donors...)
	for len(all) > maxDonors {
		all[len(all)-1].file.Close()
		all = all[:len(all)-1]
	}
	d.donors = all
}

// byUse lists the images, the one that was used last first.
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

// openDonor is the image in a directory, or nil when nothing can be had from it.
func openDonor(path string) *donor {
	name := filepath.Join(path, indexName)
	if info, err := os.Stat(name); err != nil || info.Size() > maxDonorIndex {
		return nil
	}
	encoded, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	x, err := blob.Decode(bytes.NewReader(encoded))
	if err != nil {
		return nil
	}
	file, err := os.ReadFile(filepath.Join(path, mapName))
	if err != nil {
		return nil
	}
	state, err := layoutOf(x).newest(file)
	if err != nil {
		return nil
	}
	n := &donor{index: x, table: blob.NewTable(x), bits: bitset.New(x.Len())}
	n.bits.Load(state.bits)
	for _, data := range []string{rawName, partialName} {
		if n.file, err = os.Open(filepath.Join(path, data)); err == nil {
			return n
		}
	}
	return nil
}

// find is the number of a chunk that may be copied from here, or -1.
func (n *donor) find(a blob.Algorithm, digest blob.Digest, size int64) int {
	if a != n.index.Algorithm() {
		return -1
	}
	i := n.table.Find(digest)
	if i < 0 || !n.bits.Has(i) || n.index.At(i).Size != size {
		return -1
	}
	return i
}

// copy fills dst with a chunk, and proves it. One that is not right is not tried again.
func (n *donor) copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	i := n.find(a, digest, int64(len(dst)))
	if i < 0 {
		return false
	}
	if _, err := n.file.ReadAt(dst, n.index.At(i).Offset); err != nil || a.Sum(dst) != digest {
		n.bits.Remove(i)
		return false
	}
	return true
}
