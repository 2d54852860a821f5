package crashtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cairn/blob"
)

// emptyFilesystem returns the image of a file system for a cache, made by guestData.
func emptyFilesystem(kind string) string { return guestReleases("cached").image("empty-" + kind) }

// guestCachePower records the writes of a server's image cache to its disk (dm-log-writes), and makes disks as
// a power cut would leave them. A server with each of them serves the right image, and does not fetch chunks
// that the map on the disk lists.
func guestCachePower(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { testCachePower(t, kind) })
	}
}

func testCachePower(t *testing.T, kind string) {
	random, r := chance(t), guestReleases("cached")
	d, image, x := newDepot(t, r), cachedImage(), r.read(t, "x")
	base := readStart(t, emptyFilesystem(kind), cacheSize)
	recorded, killed, whole := recordCache(t, d, kind, base, image, random)
	t.Logf("recorded %d writes and flushes, %d until the kill, %d until the image was whole", len(recorded), killed, whole)
	disk, fetched := newLoop(t, cacheSize), 0
	for n := range times()/4 + 1 {
		cut := cacheCut(random, n, len(recorded), whole)
		patch(t, disk, powerCut(random, base, recorded[:cut], n < 2), 0)
		// After a kill the map may list data that is not verified yet.
		sent := serveAfterCut(t, d, disk, kind, image, x, cut <= killed || cut >= whole)
		fetched += len(sent)
		if cut >= whole && len(sent) > 0 {
			t.Errorf("%d chunks are fetched though the image was whole", len(sent))
		}
		if t.Failed() {
			t.Fatalf("try %d: the power failed after %d of %d", n, cut, len(recorded))
		}
	}
	t.Logf("%d chunks were fetched again in all, of %d in the image", fetched, x.Len())
}

// cacheCut returns the number of requests before try n's power cut: all, those until the image was complete, or any.
func cacheCut(random *rand.Rand, n, requests, whole int) int {
	switch n {
	case 0:
		return requests
	case 1:
		return whole
	}
	return random.IntN(requests)
}

// recordCache lets a server fill its cache, kills it meanwhile, and stops it when the image is complete. It
// returns the recorded writes, and their numbers at the kill and when the image was complete.
func recordCache(t *testing.T, d *depot, kind string, base, image []byte, random *rand.Rand) (all []entry, killed, whole int) {
	below, log, point := newLoop(t, cacheSize), newLoop(t, 64*mib), t.TempDir()
	patch(t, below, base, 0)
	node := newMapping(t, "recorded", fmt.Sprintf("0 %d log-writes %s %s", cacheSize/512, below, log))
	mark := func(text string) { must(t, "dmsetup", "message", "recorded", "0", "mark", text) }
	t.Run("record", func(t *testing.T) {
		mount(t, node, point, kind, 0)
		s := serve(t, d, point, "--prefetch", "none")
		s.wantSome(t, image, random, 20)
		within(t, "nothing comes into the map", func() error {
			if len(mapped(t, point, d.index(t))) > 0 {
				return nil
			}
			return fs.ErrNotExist
		})
		s.wantSome(t, image, random, 10)
		s.kill(t)
		mark("killed")
		s = serve(t, d, point, "--prefetch", "all")
		s.wantSome(t, image, random, 20)
		within(t, "the image is not whole", func() error {
			_, err := os.Stat(cacheFile(t, point, "image.raw"))
			return err
		})
		mark("whole")
		s.stop(t)
	})
	removeMapping(t, "recorded")
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	d.news()
	all = parseLog(t, data)
	at := func(mark string) int { return slices.IndexFunc(all, func(e entry) bool { return e.mark == mark }) }
	return all, at("killed"), at("whole")
}

// serveAfterCut serves the image with the cache on a disk, and returns the fetched chunks. If proven, none of
// them may be in the map.
func serveAfterCut(t *testing.T, d *depot, disk, kind string, image []byte, x *blob.Index, proven bool) (sent map[string]int64) {
	t.Run("cut", func(t *testing.T) {
		point := t.TempDir()
		mount(t, disk, point, kind, 0)
		if raw, err := os.ReadFile(cacheFile(t, point, "image.raw")); err == nil && !bytes.Equal(raw, image) {
			t.Error("image.raw is not the image")
		}
		names := mapped(t, point, x)
		s := serve(t, d, point, "--prefetch", "none")
		s.wantAll(t, image)
		s.stop(t)
		sent = d.news()
		for name := range sent {
			if proven && names[name] {
				t.Errorf("the map speaks of chunk %s, which is fetched", name)
			}
		}
	})
	return sent
}

// cacheFile returns the path of a file of the only image in a cache. The path does not exist if there is no image.
func cacheFile(t testing.TB, cache, name string) string {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(cache, "images", "*"))
	if err != nil || len(images) > 1 {
		t.Fatal(images, err)
	}
	return filepath.Join(append(images, "none")[0], name)
}

// mapped returns the names of the chunks that a cache's map lists, as docs/format.md specifies.
func mapped(t testing.TB, cache string, x *blob.Index) map[string]bool {
	t.Helper()
	file, err := os.ReadFile(cacheFile(t, cache, "map"))
	if err != nil {
		return nil
	}
	const head, align = 80, 4096
	bits := (x.Len() + 7) / 8
	sumAt := head + 2*bits
	second := (sumAt + sha256.Size + align - 1) / align * align
	names, newest := map[string]bool{}, uint64(0)
	for _, at := range []int{0, second} {
		if len(file) < at+sumAt+sha256.Size {
			continue
		}
		slot := file[at:]
		sum, sequence := sha256.Sum256(slot[:sumAt]), binary.LittleEndian.Uint64(slot[16:])
		if !bytes.Equal(sum[:], slot[sumAt:sumAt+sha256.Size]) || sequence <= newest {
			continue
		}
		names, newest = map[string]bool{}, sequence
		for i, c := range x.All() {
			if slot[head+i/8]>>(i%8)&1 != 0 {
				names[c.Digest.String()+".cacnk"] = true
			}
		}
	}
	return names
}

// guestCacheFaults makes the disk of a server's image cache fail. No read fails or is wrong, and the server
// reports the failure once.
func guestCacheFaults(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *cacheRig, string){
		"reads fail":  testCacheReadsFail,
		"writes fail": testCacheWritesFail,
	} {
		t.Run(name, func(t *testing.T) {
			below := filled(t, emptyFilesystem("ext4"), cacheSize)
			node := newMapping(t, "cachedisk", linear(below, cacheSize))
			test(t, newCacheRig(t, guestReleases("cached"), node), below)
		})
	}
}

func testCacheReadsFail(t *testing.T, c *cacheRig, below string) {
	s := serve(t, c.depot, c.point, "--prefetch", "all")
	s.await(t, "complete on disk")
	remap(t, "cachedisk", fmt.Sprintf("0 %d error\n", cacheSize/512))
	forgetPages(t)
	s.wantSome(t, c.image, c.random, 20)
	s.wantDegraded(t)
	s.wantAll(t, c.image)
	remap(t, "cachedisk", linear(below, cacheSize))
	s.wantAll(t, c.image)
	s.wantSaidOnce(t, cacheFails)
	s.stop(t)
	c.again(t)
}

// testCacheWritesFail: bytes that the kernel accepted and the disk lost must not be served when the page cache
// is dropped.
func testCacheWritesFail(t *testing.T, c *cacheRig, below string) {
	s := serve(t, c.depot, c.point, "--prefetch", "none")
	s.wantSome(t, c.image, c.random, 5)
	remap(t, "cachedisk", broken(below, cacheSize, errorWrites))
	s.wantAll(t, c.image)
	s.wantDegraded(t)
	s.wantAll(t, c.image) // from pages that the kernel still has, if the server trusts them
	for range 2 {
		forgetPages(t)
		s.wantAll(t, c.image)
	}
	s.wantSaidOnce(t, cacheFails)
	s.stop(t)
	remap(t, "cachedisk", linear(below, cacheSize))
	c.again(t)
}

// forgetPages drops the clean pages from the page cache.
func forgetPages(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
}
