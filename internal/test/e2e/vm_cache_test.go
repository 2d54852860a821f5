package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/blob"
)

// TestVMCache: machines boot from servers with a cache on disk, by the recipes of docs/vms.md. The first server
// is killed and the store is unavailable during the boot, as in TestVMOutages; cached chunks are not fetched
// again. A second host prefetches the chunks that this boot recorded; its guest keeps its disk when another
// image is published under the name. A third host fetches everything, and boots its guest without a store.
func TestVMCache(t *testing.T) {
	t.Parallel()
	b := newOutageBoot(t)
	b.values["PROFILE"] = filepath.Join(t.TempDir(), "root.caprf")
	b.newHost(t)
	b.args = serveArgs(t, "cache", b.values)
	b.untilRunning(t)
	disk := b.cached(t)
	disk.await(t, b.web.asked(t))
	b.killServer(t)
	before, kept := b.web.asked(t), disk.chunks(t)
	b.goOn(t)
	b.stopServer(t)
	b.wantNotAgain(t, before, kept)

	b.newHost(t)
	b.followProfile(t)

	b.newHost(t)
	b.fill(t)
	b.values["STORE"], b.values["INDEX"] = deadURL(t)+"/default.castr", b.index()
	b.args = serveArgs(t, "fill", b.values)
	b.untilRunning(t)
	b.wantSystem(t, b.vm, 0)
}

// newHost makes an empty cache, and starts a web server without earlier requests.
func (b *outageBoot) newHost(t *testing.T) {
	t.Helper()
	b.connect(t)
	b.values["CACHE"] = filepath.Join(t.TempDir(), "cache")
}

func (b *outageBoot) stopServer(t *testing.T) {
	t.Helper()
	b.server.signal(t, syscall.SIGTERM)
	b.server.wantStopped(t)
}

// followProfile boots from a watched directory with the recorded profile. The guest continues after its first
// read of the disk when all recorded chunks have been fetched, and new clients get another image.
func (b *outageBoot) followProfile(t *testing.T) {
	t.Helper()
	b.values["DIR"] = t.TempDir()
	publishAs := func(name string) {
		must(t, "cp", filepath.Join(b.dir, name), filepath.Join(b.values["DIR"], "new"))
		must(t, "mv", filepath.Join(b.values["DIR"], "new"), filepath.Join(b.values["DIR"], "root.caibx"))
	}
	publishAs("root.caibx")
	must(t, "mv", b.values["PROFILE"], b.values["DIR"])
	recorded := b.recorded(t, filepath.Join(b.values["DIR"], "root.caprf"))

	b.server = serve(t, 1, serveArgs(t, "watch", b.values)...)
	vm := bootFromDisk(t, b.values, "echo guest: mounted; read word")
	wantLines(t, vm, "guest: mounted")
	until(t, "the profile's chunks are fetched", func() bool { return hasAll(b.web.asked(t), recorded) })
	publishAs("data.caibx")
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///root?socket="+b.values["SOCKET"], b.ext4)
	vm.Type(t, "go on")
	wantLines(t, vm, "guest: running")
	b.wantSystem(t, vm, 0)
	b.stopServer(t)
}

// recorded returns the prefixes of the digests in a profile, all of which must be in the image.
func (b *outageBoot) recorded(t *testing.T, profile string) (prefixes []string) {
	t.Helper()
	var shown struct {
		Chunks int `json:"chunks"`
		Known  int `json:"known_chunks"`
	}
	parse(t, cairn(t, "profile", "show", profile, "--index", b.index(), "--json"), &shown)
	for line := range strings.Lines(cairn(t, "profile", "show", profile, "--chunks")) {
		if words := strings.Fields(line); strings.HasSuffix(line, " ms\n") && len(words) == 4 {
			prefixes = append(prefixes, words[0])
		}
	}
	t.Logf("%d chunks were recorded", shown.Chunks)
	if shown.Chunks == 0 || shown.Known != shown.Chunks || len(prefixes) != shown.Chunks {
		t.Fatalf("the profile is %+v, and lists %d chunks", shown, len(prefixes))
	}
	return prefixes
}

// hasAll reports whether there is a chunk for each prefix of a digest.
func hasAll(chunks map[string]int, prefixes []string) bool {
	left := map[string]bool{}
	for _, p := range prefixes {
		left[p] = true
	}
	for digest := range chunks {
		delete(left, digest[:min(len(digest), len(prefixes[0]))])
	}
	return len(left) == 0
}

// fill lets a server fetch the whole image: the file in its cache then is the image.
func (b *outageBoot) fill(t *testing.T) {
	t.Helper()
	b.server = serve(t, 1, serveArgs(t, "fill", b.values)...)
	b.server.stderr.await(t, "the image is complete on disk")
	b.stopServer(t)
	wantSame(t, filepath.Join(b.cached(t).dir, "image.raw"), b.squashfs)
}

// wantNotAgain checks that nginx got no request for cached chunks since before.
func (b *outageBoot) wantNotAgain(t *testing.T, before map[string]int, kept map[string]bool) {
	t.Helper()
	now, again := b.web.asked(t), 0
	for digest := range kept {
		if now[digest] > before[digest] {
			again++
		}
	}
	t.Logf("%d chunks were asked for, and %d of them kept, before the server was killed; %d more after that",
		len(before), len(kept), len(now)-len(before))
	if again > 0 || len(kept) == 0 {
		t.Errorf("of %d chunks that were kept %d were fetched again", len(kept), again)
	}
}

// cachedImage is an image in a server's cache.
type cachedImage struct {
	dir   string
	index *blob.Index
}

// cached returns the system's image in the cache.
func (b *outageBoot) cached(t *testing.T) cachedImage {
	t.Helper()
	_, digest, _ := strings.Cut(b.values["EXPORT"], "@")
	return cachedImage{filepath.Join(b.values["CACHE"], "images", digest), readIndex(t, b.index())}
}

// chunks returns the digests of the chunks in the file, whether its map lists them or not, except zeros.
func (c cachedImage) chunks(t testing.TB) map[string]bool {
	t.Helper()
	file := filepath.Join(c.dir, "image.partial")
	if _, err := os.Stat(file); err != nil {
		file = filepath.Join(c.dir, "image.raw")
	}
	image, here := readFile(t, file), map[string]bool{}
	for i, chunk := range c.index.All() {
		if !c.index.IsZero(i) && c.index.Algorithm().Sum(image[chunk.Offset:chunk.End()]) == chunk.Digest {
			here[chunk.Digest.String()] = true
		}
	}
	return here
}

// await returns when these chunks are in the file.
func (c cachedImage) await(t testing.TB, asked map[string]int) {
	t.Helper()
	until(t, "the cache has what was fetched", func() bool {
		here := c.chunks(t)
		for digest := range asked {
			if !here[digest] {
				return false
			}
		}
		return len(asked) > 0
	})
}

// until polls a condition that no event reports.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("it was not so in time that %s", what)
		}
	}
}
