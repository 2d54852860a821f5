package imagecache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cairn/testimages"
)

// damageChunks flips a bit of each of the chunks [lo, hi) on disk, behind the back of the Dir.
func (r *rig) damageChunks(lo, hi int) {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.file.path, "image.*"))
	if err != nil || len(files) != 1 {
		r.t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for i := lo; i < hi; i++ {
		c := r.x.At(i)
		at := c.End() - 1
		if _, err := f.WriteAt([]byte{r.image[at] ^ 1}, at); err != nil {
			r.t.Fatal(err)
		}
	}
}

// countData returns how many chunks [lo, hi) the file holds proven, and their bytes.
func (r *rig) countData(lo, hi int) (n int, size int64) {
	for i := lo; i < hi; i++ {
		if r.file.Has(i) {
			n++
			size += r.x.At(i).Size
		}
	}
	return n, size
}

// sampleAll runs a pass over the image without its pauses.
func (r *rig) sampleAll() {
	s := &sampler{dir: r.dir}
	defer s.leaveFile()
	for s.sampleNext(); s.left > 0; s.sampleNext() {
	}
}

// TestSample checks that damaged chunks lose their mark, on disk too, and are logged and counted. The file loses the name
// of a complete image until they are written again.
func TestSample(t *testing.T) {
	r, logs := newLoggedRig(t, testimages.Random(1, 500_000))
	all := r.x.Len()
	r.writeAndFlush(0, all)
	r.sampleAll()
	if u := r.dir.Usage(); u.Damaged != 0 || u.Sampled != r.x.Size() {
		t.Errorf("Usage = %+v, want a sample of %d bytes without damage", u, r.x.Size())
	}
	r.flush()
	if _, complete := r.rawFile(); !complete {
		t.Error("the image is not complete")
	}
	r.damageChunks(3, 6)
	r.sampleAll()
	if n, _ := r.countData(3, 6); n != 0 {
		t.Errorf("%d damaged chunks are still read", n)
	}
	if proven, claimed := r.checkChunks(); proven != all-3 || claimed != 0 {
		t.Errorf("%d chunks are proven and %d claimed, want %d and 0", proven, claimed, all-3)
	}
	if n := logs.count("is damaged"); n != 3 || r.dir.Usage().Damaged != 3 {
		t.Errorf("%d messages, Usage = %+v; want 3 damaged chunks", n, r.dir.Usage())
	}
	if want := fmt.Sprintf("directory=%s offset=%d chunk=%v", r.file.path, r.x.At(4).Offset, r.x.At(4).Digest); logs.count(want) != 1 {
		t.Errorf("the log does not contain %q once", want)
	}
	r.flush()
	if name, complete := r.rawFile(); complete {
		t.Errorf("%s is a damaged image", name)
	}
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.openCache(Options{})
	if proven, claimed := r.checkChunks(); proven != all-3 || claimed != 0 {
		t.Errorf("after a restart %d chunks are proven and %d claimed, want %d and 0", proven, claimed, all-3)
	}
	r.writeAndFlush(0, all)
	r.flush()
	raw, complete := r.rawFile()
	if got, err := os.ReadFile(raw); !complete || err != nil || !bytes.Equal(got, r.image) {
		t.Errorf("the file has its final name: %v; reading it: %v; want the complete image", complete, err)
	}
}

// TestSampleUnreadable checks that a chunk whose read fails with an error of the medium is not read or written any more.
// Other errors say nothing of the chunk.
func TestSampleUnreadable(t *testing.T) {
	for _, c := range []struct {
		err  error
		lost bool
	}{{syscall.EIO, true}, {syscall.ENODATA, true}, {syscall.ENOMEM, false}} {
		r, logs := newLoggedRig(t, testimages.Random(1, 100_000))
		r.writeAndFlush(0, r.x.Len())
		r.disk.setError(&r.disk.mediumErr, &os.PathError{Op: "read", Path: "x", Err: c.err})
		s := &sampler{dir: r.dir}
		pause := s.sampleNext()
		s.leaveFile()
		lost := 0
		for i := range r.x.Len() {
			if !r.file.Has(i) && !r.file.Wants(i) {
				lost++
			}
		}
		want := 0
		if c.lost {
			want = 1
		}
		if lost != want || logs.count("is damaged") != want || pause != retryTime {
			t.Errorf("%v: %d chunks are lost, %d messages, a pause of %v", c.err, lost, logs.count("is damaged"), pause)
		}
	}
}

// TestSampleDuringRead checks that a read of a damaged chunk fails if the damage is found before the read ends.
func TestSampleDuringRead(t *testing.T) {
	r := newRig(t, testimages.Random(1, 100_000))
	r.writeAndFlush(0, r.x.Len())
	r.damageChunks(0, r.x.Len())
	r.disk.afterNextRead(r.sampleAll)
	c := r.x.At(1)
	if r.file.Read(make([]byte, c.Size), c.Offset, 1, 2) {
		t.Error("a read returns a chunk that was found to be damaged")
	}
}

// TestSampleDuringEviction checks that a chunk that changes while it is sampled does not count as damaged.
func TestSampleDuringEviction(t *testing.T) {
	r, logs := newLoggedRig(t, testimages.Random(1, 100_000))
	r.writeAndFlush(0, r.x.Len())
	r.damageChunks(0, r.x.Len())
	r.disk.mu.Lock()
	r.disk.afterSample = func() { r.file.chunks.markMissing(0) }
	r.disk.mu.Unlock()
	r.sampleAll()
	if n, _ := r.countData(1, r.x.Len()); n != r.x.Len()-1 || logs.count("is damaged") != 0 {
		t.Errorf("%d chunks are kept, %d count as damaged", n, logs.count("is damaged"))
	}
}

// TestSampleRate checks the rate of the sampler while the disk is idle, that it reaches all images, and that it reads a
// chunk a minute while the disk is in use.
func TestSampleRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, testimages.Random(1, 2<<20))
		defer r.dir.Close()
		other := testimages.Random(2, 1<<20)
		x := index(t, other)
		f, err := r.dir.Image(x)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range x.All() {
			f.OfferWait(t.Context(), i, other[c.Offset:c.End()])
		}
		r.writeAndFlush(0, r.x.Len())
		began := time.Now()
		r.damageChunks(0, r.x.Len())
		for r.dir.Usage().Damaged < int64(r.x.Len()) {
			time.Sleep(time.Second)
		}
		const all = (3 << 20) / sampleRate * time.Second
		if took := time.Since(began); took < all/3 || took > all+20*time.Second {
			t.Errorf("all damage was found after %v, want at most about %v", took, all)
		}
		before := r.dir.Usage().Sampled
		for range 600 {
			if p := make([]byte, 10); !f.Read(p, 0, 0, 1) || !bytes.Equal(p, other[:10]) {
				t.Fatal("a read fails")
			}
			time.Sleep(time.Second)
		}
		if got, most := r.dir.Usage().Sampled-before, 11*x.Params().Max; got == 0 || got > most {
			t.Errorf("%d bytes were sampled in 10 minutes of reads, want at most %d", got, most)
		}
		if u := r.dir.Usage(); u.Damaged != int64(r.x.Len()) {
			t.Errorf("%d chunks count as damaged, want %d", u.Damaged, r.x.Len())
		}
	})
}

// TestSampleMedium checks that both readers of the medium find damage.
func TestSampleMedium(t *testing.T) {
	r := newRig(t, testimages.Random(1, 300_000))
	r.writeAndFlush(0, r.x.Len())
	for name, from := range map[string]func(s *sparse) (err error){
		"direct":  func(s *sparse) error { return verifyChunk(s.openMedium(), r.x, 5, make([]byte, 1000)) },
		"dropped": func(s *sparse) error { return verifyChunk(droppingReader{s}, r.x, 5, make([]byte, 1000)) },
	} {
		s := r.disk.medium.(*sparse)
		s.dropCache()
		if err := from(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r.damageChunks(5, 6)
		if err := from(s); !errors.Is(err, errWrongDigest) {
			t.Errorf("%s: %v, want damage", name, err)
		}
		if _, err := s.WriteAt(r.chunkData(5), r.x.At(5).Offset); err != nil {
			t.Fatal(err)
		}
		if err := s.flushData(); err != nil {
			t.Fatal(err)
		}
	}
}
