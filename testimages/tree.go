package testimages

import (
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// Entry is a file or directory of a tree. There are no symbolic links, because go-diskfs cannot write them to a
// squashfs.
type Entry struct {
	Path string // slash-separated and relative; parents come before children
	Mode fs.FileMode
	Data []byte // nil for directories
}

const (
	firstFiles     = 440 // files of release 0
	newFiles       = 4   // files added by each release
	changedPercent = 5   // of the files, by each release
	removedPercent = 1   // of the files, by each release
)

// Tree returns a small operating system of about 20 MiB: programs, libraries, texts. Release n+1 adds and
// removes a few files of release n, changes a few in one place, and keeps the rest.
func Tree(seed uint64, release int) []Entry {
	var tree []Entry
	for slot := range firstFiles + newFiles*release {
		if e, ok := makeEntry(seed, slot, release); ok {
			tree = append(tree, e)
		}
	}
	tree = append(tree, parentDirs(tree)...)
	slices.SortFunc(tree, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return tree
}

// makeEntry returns the file of a slot in a release, with all changes since its first content. ok is false if
// there is none.
func makeEntry(seed uint64, slot, release int) (e Entry, ok bool) {
	source := newGenerator(seed, fmt.Sprint("file ", slot))
	random := rand.New(source)
	kinds := []struct {
		dir, format string
		mode        fs.FileMode
		fill        func([]byte, *rand.ChaCha8)
	}{
		{"usr/bin", "program-%d", 0o755, fillBinary},
		{"usr/lib", "lib%d.so.1", 0o644, fillBinary},
		{"usr/lib/modules", "driver-%d.ko", 0o644, fillBinary},
		{"usr/share/doc", "text-%d.txt", 0o644, fillText},
		{"etc", "service-%d.conf", 0o644, fillText},
	}
	kind := kinds[random.IntN(len(kinds))]
	e = Entry{Path: path.Join(kind.dir, fmt.Sprintf(kind.format, slot)), Mode: kind.mode}
	e.Data = make([]byte, int(math.Exp2(8+10.5*random.Float64()))) // 256 bytes to 360 KiB, mostly small
	kind.fill(e.Data, source)
	for r := 1; r <= release; r++ {
		switch dice := random.IntN(100); {
		case slot >= firstFiles+newFiles*(r-1): // release r-1 does not have it
		case dice < removedPercent:
			return Entry{}, false
		case dice < removedPercent+changedPercent:
			e.Data = changeBytes(e.Data, random)
		}
	}
	return e, true
}

// fillBinary fills p with bytes that compress to about two thirds, as machine code does.
func fillBinary(p []byte, source *rand.ChaCha8) {
	source.Read(p)
	for i := range p {
		if i%16 < 6 {
			p[i] = byte(i % 16)
		}
	}
}

// fillText fills p with text that compresses well.
func fillText(p []byte, source *rand.ChaCha8) {
	words := strings.Fields("the a device image is of and written read block slot partition boots from to with " +
		"never system kernel release update network seed chunk index store file when after before no one")
	for len(p) > 0 {
		n := copy(p, words[source.Uint64()%uint64(len(words))])
		p = p[n:]
		p = p[copy(p, " "):]
	}
}

// changeBytes replaces a few bytes in one place or, in half of the cases, inserts some, which moves all later bytes.
func changeBytes(data []byte, random *rand.Rand) []byte {
	at := random.IntN(len(data))
	patch := make([]byte, 1+random.IntN(200))
	for i := range patch {
		patch[i] = byte(random.Uint32())
	}
	if random.IntN(2) == 0 {
		return slices.Insert(data, at, patch...)
	}
	copy(data[at:], patch)
	return data
}

// parentDirs returns the directories of the files.
func parentDirs(files []Entry) []Entry {
	seen := map[string]bool{".": true}
	var dirs []Entry
	for _, e := range files {
		for dir := path.Dir(e.Path); !seen[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			dirs = append(dirs, Entry{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	return dirs
}
