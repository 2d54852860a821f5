package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// update is a way to install release b into the second slot.
type update struct {
	name    string
	index   string // of the seed: that of a release, or "" to scan the seed
	changes bool   // the seed is written to during the update
}

var updates = []update{
	{name: "seed with index", index: "a"},
	{name: "seed without index"},
	{name: "seed with a wrong index", index: "b"},
	{name: "changing seed with index", index: "a", changes: true},
	{name: "changing seed without index", changes: true},
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	for _, p := range pairs(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := publish(t, p)
			t.Logf("difference: %+v", r.difference(t))
			for _, u := range updates {
				t.Run(u.name+" on a disk image", func(t *testing.T) { u.test(t, r, newSlots(t, r, false)) })
				t.Run(u.name+" on a device", func(t *testing.T) { u.test(t, r, newSlots(t, r, true)) })
			}
		})
	}
}

func (u update) test(t *testing.T, r release, s slots) {
	server := newNginx(t, r.dir)
	want := s.parts(t, r.b)
	want.image = sum(t, r.b, 0, fileSize(t, r.b))
	known := u.known(t, r, s)
	got := u.run(t, server, s)
	limit := r.needed(t, known, s.seed(t))
	if u.changes {
		want.before = s.parts(t, r.b).before
	} else if u.index == "" {
		limit = r.difference(t).plus(r.twoChunks(t))
	}
	u.check(t, got, server.sent(t), limit)
	if s.parts(t, r.b) != want {
		t.Error("the slot is not the image, or something else on the disk has changed")
	}
	cairn(t, "verify", server.url+"/b.caibx", s.b)
	u.again(t, server, s)
}

// known returns the index that is assumed for the seed.
func (u update) known(t testing.TB, r release, s slots) *blob.Index {
	t.Helper()
	if u.index != "" {
		return readIndex(t, r.index(u.index))
	}
	dir := t.TempDir()
	cairn(t, "make", filepath.Join(dir, "scan.caibx"), s.a)
	return readIndex(t, filepath.Join(dir, "scan.caibx"))
}

func (u update) args(url string, s slots) []string {
	seed := s.a
	if u.index != "" {
		seed += "=" + url + "/" + u.index + ".caibx"
	}
	return []string{"assemble", "--json", url + "/b.caibx", s.b, "--seed", seed}
}

// once prevents repeated requests for slow answers, so that downloads can be counted: a job with a download
// limit sends none.
func once(args []string) []string { return append(slices.Clone(args), "--max-download", "1GiB") }

// run assembles. A seed that changes is written to after the planning, before most of it is read.
func (u update) run(t testing.TB, server *webServer, s slots) (got assembled) {
	t.Helper()
	if !u.changes {
		parse(t, cairn(t, once(u.args(server.url, s))...), &got)
		return got
	}
	g := newGate(t, server.url, 0)
	j := start(t, nil, once(u.args(g.url, s))...)
	g.await(t)
	s.change(t)
	g.open()
	ended := j.wait(t)
	if ended.status != 0 {
		t.Fatalf("exit status %d\n%s", ended.status, ended.stderr)
	}
	if parse(t, ended.stdout, &got); got.SeedMiss == 0 {
		t.Error("nothing was missed in the changed seed: it was changed too late")
	}
	return got
}

// check compares cairn's report with nginx's log, and both with the limit.
func (u update) check(t testing.TB, got assembled, wire, limit traffic) {
	t.Helper()
	t.Logf("downloaded %+v, allowed %+v, seed misses %d", wire, limit, got.SeedMiss)
	if told := (traffic{got.Downloads, got.Bytes}); told != wire {
		t.Errorf("cairn tells of %+v, nginx has sent %+v", told, wire)
	}
	if wire.chunks > limit.chunks || wire.bytes > limit.bytes {
		t.Errorf("nginx has sent %+v, want at most %+v", wire, limit)
	}
	if got.Done != got.Size {
		t.Errorf("%d of %d bytes are done", got.Done, got.Size)
	}
}

// again assembles once more, which must write nothing.
func (u update) again(t testing.TB, server *webServer, s slots) {
	t.Helper()
	before := changed(t, s.disk)
	var got assembled
	parse(t, cairn(t, u.args(server.url, s)...), &got)
	if got.InPlace != got.Size || got.Written != 0 || got.Downloads != 0 {
		t.Errorf("once more: %+v, want all of it in place", got)
	}
	if wire := server.sent(t); wire != (traffic{}) || changed(t, s.disk) != before {
		t.Errorf("once more: nginx has sent %+v, and the disk may have been written", wire)
	}
}

// changed returns the time of a file's last change.
func changed(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime().UnixNano()
}

// TestRememberedSeedHasChanged: a device's content is remembered, and data that it no longer holds costs a download.
func TestRememberedSeedHasChanged(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	s, state := newSlots(t, r, true), t.TempDir()
	u := update{name: "seed remembered"}
	known := u.known(t, r, s)
	args := append(once(u.args(server.url, s)), "--state", state)
	cairn(t, args...)
	server.sent(t)
	s.change(t)
	wipe(t, strings.Replace(s.b, "#root-b", "p3", 1))
	ended := run(t, "cairn", args...)
	if ended.status != 0 || strings.Contains(ended.stderr, "scanning "+s.a) {
		t.Fatalf("exit status %d, or the seed was scanned again\n%s", ended.status, ended.stderr)
	}
	var got assembled
	parse(t, ended.stdout, &got)
	u.check(t, got, server.sent(t), r.needed(t, known, s.seed(t)))
	cairn(t, "verify", r.index("b"), s.b)
}

// wipe fills a device with zeros.
func wipe(t testing.TB, node string) {
	t.Helper()
	must(t, "blkdiscard", "--zeroout", node)
}

// TestPlanForetells: plan reports the same figures as assemble, and neither fetches nor writes.
func TestPlanForetells(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	for _, u := range updates[:3] {
		s := newSlots(t, r, false)
		before := changed(t, s.disk)
		args := u.args(server.url, s)
		var foretold, done assembled
		parse(t, cairn(t, append([]string{"plan"}, args[1:]...)...), &foretold)
		if wire := server.sent(t); wire != (traffic{}) || changed(t, s.disk) != before {
			t.Errorf("%s: plan has fetched %+v or written", u.name, wire)
		}
		parse(t, cairn(t, once(args)...), &done)
		server.sent(t)
		foretold.Written = done.Written
		if diff := cmp.Diff(foretold, done); diff != "" {
			t.Errorf("%s: assemble has done other than plan tells (-plan +assemble)\n%s", u.name, diff)
		}
	}
}

// TestUpdateFile: a file is replaced whole, and its old content is a seed.
func TestUpdateFile(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	dir := t.TempDir()
	target := writeFile(t, dir, "root.img", readFile(t, r.a))
	old := open(t, target)
	var got assembled
	seed := r.a + "=" + r.index("a")
	parse(t, cairn(t, once([]string{"assemble", "--json", server.url + "/b.caibx", target, "--seed", seed})...), &got)
	wantSame(t, target, r.b)
	wantOnly(t, dir, "root.img")
	if wire, limit := server.sent(t), r.difference(t); wire != limit || got.Downloads != wire.chunks {
		t.Errorf("nginx has sent %+v, cairn tells of %d chunks, want %+v", wire, got.Downloads, limit)
	}
	if p, err := io.ReadAll(old); err != nil || !bytes.Equal(p, readFile(t, r.a)) {
		t.Errorf("the old file was written to, or cannot be read: %v", err)
	}
	before := changed(t, target)
	parse(t, cairn(t, "assemble", "--json", server.url+"/b.caibx", target), &got)
	if got.InPlace != got.Size || changed(t, target) != before || server.sent(t) != (traffic{}) {
		t.Errorf("once more: %+v, want all of it in place", got)
	}
}

// TestCacheSavesDownloads: a second machine's assembly downloads no more chunks.
func TestCacheSavesDownloads(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	dir := t.TempDir()
	assemble := func(name string) {
		t.Helper()
		target := filepath.Join(dir, name)
		cairn(t, "assemble", "-c", filepath.Join(dir, "cache"), server.url+"/b.caibx", target)
		wantSame(t, target, r.b)
	}
	assemble("first")
	if wire := server.sent(t); wire.chunks == 0 {
		t.Errorf("nginx has sent %+v", wire)
	}
	// nginx may log a request of the first job late, which that has cancelled, so the chunks are taken away.
	if err := os.Rename(filepath.Join(r.dir, "default.castr"), filepath.Join(r.dir, "away")); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(r.dir, "default.castr"))
	assemble("second")
}

// TestCacheLimit: a cache that is far too small costs only downloads. At its default limit a cache on a small
// disk leaves space for other data.
func TestCacheLimit(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	dir, disk := t.TempDir(), mount(t, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
	for n, limit := range []string{"--cache-limit=300K", "--cache-limit=1", "--progress=none"} {
		cache, most := filepath.Join(dir, fmt.Sprint("cache", n)), int64(300<<10)
		if n == 2 {
			cache, most = filepath.Join(disk, "cache"), 8*mib/10
		}
		for range 2 {
			target := filepath.Join(t.TempDir(), "target")
			got := run(t, "cairn", "assemble", "-c", cache, limit, server.url+"/b.caibx", target)
			if got.status != 0 || strings.Contains(got.stderr, "warning") {
				t.Errorf("with %s: %+v", limit, got)
			}
			wantSame(t, target, r.b)
		}
		var bytes int64
		chunks, err := filepath.Glob(filepath.Join(cache, "????", "*"))
		for _, chunk := range chunks {
			bytes += fileSize(t, chunk)
		}
		if err != nil || bytes > most || (bytes == 0) != (n == 1) {
			t.Errorf("with %s the cache has %d bytes, %v; want at most %d", limit, bytes, err, most)
		}
	}
}

// TestTags: partitions are found by label and UUID on all disks of the machine.
func TestTags(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	disk := filepath.Join(t.TempDir(), "disk.img")
	label := fmt.Sprintf("e2e-%d", os.Getpid())
	a := testimages.Part{Name: label + "-a", Size: 8 * mib, Image: r.a}
	b := testimages.Part{Name: label + "-b", Size: 8 * mib}
	if err := testimages.GPTDisk(disk, 512, a, b); err != nil {
		t.Fatal(err)
	}
	node := looptest.Attach(t, disk, 512)
	var known struct {
		Partitions []struct{ Name, UUID, Node string }
	}
	parse(t, cairn(t, "disk", "--json", node), &known)
	if b := known.Partitions[1]; b.Node != node+"p2" || b.Name != label+"-b" {
		t.Fatalf("cairn disk tells of %+v", known)
	}
	uuid := strings.ToUpper(known.Partitions[1].UUID)
	for _, target := range []string{"PARTLABEL=" + label + "-b", "PARTUUID=" + uuid} {
		wipe(t, node+"p2")
		cairn(t, "assemble", r.index("b"), target, "--seed", "PARTLABEL="+label+"-a="+r.index("a"))
		if n := fileSize(t, r.b); sum(t, node+"p2", 0, n) != sum(t, r.b, 0, n) {
			t.Errorf("%s does not hold the image", target)
		}
	}
}

// TestUpdateSharesBlocks: on a file system with reflinks a new file shares blocks with the seed.
func TestUpdateSharesBlocks(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			for _, p := range filesystems(t) {
				shareBlocks(t, p, mounted(t, kind))
			}
		})
	}
}

func shareBlocks(t *testing.T, p pair, dir string) {
	t.Helper()
	r := publish(t, p)
	seed, target := writeFile(t, dir, "a.img", readFile(t, r.a)), filepath.Join(dir, "b.img")
	var got assembled
	parse(t, cairn(t, "assemble", "--json", r.index("b"), target, "--seed", seed+"="+r.index("a")), &got)
	wantSame(t, target, r.b)
	// The files of an ext4 move in whole blocks; those of a squashfs do not.
	if most := got.Size - got.Zero - got.Seeds[0]/2; p.name == "ext4" && got.Written > most {
		t.Errorf("%d bytes written, want at most %d, as %d come from a seed", got.Written, most, got.Seeds[0])
	}
}

// mounted returns the mount point of a new file system.
func mounted(t *testing.T, kind string) string {
	t.Helper()
	image, dir := writeFile(t, t.TempDir(), kind, nil), t.TempDir()
	if err := os.Truncate(image, 1<<30); err != nil {
		t.Fatal(err)
	}
	must(t, "mkfs."+kind, "-q", image)
	must(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { // the test's context has ended
		if err := exec.Command("umount", dir).Run(); err != nil {
			t.Errorf("umount %s: %v", dir, err)
		}
	})
	return dir
}
