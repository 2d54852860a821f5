package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/internal/blockdev/looptest"
	"cairn/testimages"
)

const mib = 1 << 20

// release is the two releases of a pair, published: a.caibx, b.caibx and default.castr in one directory.
type release struct {
	pair
	dir string
}

func publish(t testing.TB, p pair) release {
	t.Helper()
	r := release{p, t.TempDir()}
	cairn(t, "make", r.index("a"), p.a)
	cairn(t, "make", r.index("b"), p.b)
	return r
}

func (r release) index(name string) string { return filepath.Join(r.dir, name+".caibx") }

// stored is what a chunk takes in the store, in bytes.
func (r release) stored(t testing.TB, c blob.Chunk) int64 {
	t.Helper()
	return fileSize(t, chunkFile(filepath.Join(r.dir, "default.castr"), c.Digest))
}

// needed is what must be downloaded for release b by someone who has a seed and its index: each chunk once, as it
// is stored, zeros apart. What the seed does not hold where the index says so counts as absent.
func (r release) needed(t testing.TB, index *blob.Index, seed io.ReaderAt) traffic {
	t.Helper()
	here := map[blob.Digest]bool{}
	for _, c := range index.All() {
		if before, known := here[c.Digest]; before || !known {
			here[c.Digest] = holds(index, c, seed)
		}
	}
	var sum traffic
	x := readIndex(t, r.index("b"))
	for i, c := range x.All() {
		if x.IsZero(i) || here[c.Digest] {
			continue
		}
		here[c.Digest] = true
		sum.chunks++
		sum.bytes += r.stored(t, c)
	}
	return sum
}

func holds(x *blob.Index, c blob.Chunk, seed io.ReaderAt) bool {
	p := make([]byte, c.Size)
	n, _ := seed.ReadAt(p, c.Offset)
	return n == len(p) && x.Algorithm().Sum(p) == c.Digest
}

// difference is what release b needs besides release a.
func (r release) difference(t testing.TB) traffic {
	t.Helper()
	return r.needed(t, readIndex(t, r.index("a")), open(t, r.a))
}

// twoChunks is what two chunks of release b may take.
func (r release) twoChunks(t testing.TB) traffic {
	t.Helper()
	var sizes []int64
	for _, c := range readIndex(t, r.index("b")).All() {
		sizes = append(sizes, r.stored(t, c))
	}
	slices.Sort(sizes)
	two := traffic{chunks: 2}
	for _, n := range sizes[max(0, len(sizes)-2):] {
		two.bytes += n
	}
	return two
}

func (t traffic) plus(u traffic) traffic { return traffic{t.chunks + u.chunks, t.bytes + u.bytes} }

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// slots is a disk with two slots: the first one holds release a, the second one something else.
type slots struct {
	disk string // the disk image
	size int64  // of a slot
	a, b string // the slots, as cairn is told
}

const firstSlot = 2 * mib // behind the table and an empty partition

// newSlots makes the disk image, and of it a device of the kernel if asked to.
func newSlots(t testing.TB, r release, device bool) slots {
	t.Helper()
	dir := t.TempDir()
	s := slots{disk: filepath.Join(dir, "disk.img")}
	s.size = (max(fileSize(t, r.a), fileSize(t, r.b))/mib + 2) * mib
	other := writeFile(t, dir, "other", testimages.Random(9, 3*mib))
	if err := testimages.GPTDisk(s.disk, 512, testimages.Slots(s.size, r.a, other)...); err != nil {
		t.Fatal(err)
	}
	node := s.disk
	if device {
		node = looptest.Attach(t, s.disk, 512)
	}
	s.a, s.b = node+"#root-a", node+"#root-b"
	return s
}

// seed is the first slot's bytes.
func (s slots) seed(t testing.TB) io.ReaderAt {
	t.Helper()
	return io.NewSectionReader(open(t, s.disk), firstSlot, s.size)
}

// parts are the disk's bytes before the second slot, in it as far as the image goes, and behind that.
type parts struct{ before, image, behind [32]byte }

func (s slots) parts(t testing.TB, image string) parts {
	t.Helper()
	at, n, total := firstSlot+s.size, fileSize(t, image), fileSize(t, s.disk)
	return parts{sum(t, s.disk, 0, at), sum(t, s.disk, at, n), sum(t, s.disk, at+n, total-at-n)}
}

// change writes to the first slot in a few places, as whoever runs from there might.
func (s slots) change(t testing.TB) {
	t.Helper()
	path, base := s.disk, int64(firstSlot)
	if node, isDevice := strings.CutSuffix(s.a, "#root-a"); isDevice && node != s.disk {
		path, base = node+"p2", 0
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := range int64(9) {
		if _, err := f.WriteAt(testimages.Random(uint64(n), 4096), base+s.size/10*(n+1)/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// update is a way to bring release b into the second slot.
type update struct {
	name    string
	index   string // of the seed: that of a release, or "" to have the seed scanned
	changes bool   // the seed is written to meanwhile
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

// known is the index that the seed is thought to have.
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

// run assembles. A seed that changes is written to after the planning, before most of it is read.
func (u update) run(t testing.TB, server *nginx, s slots) (got assembled) {
	t.Helper()
	if !u.changes {
		parse(t, cairn(t, u.args(server.url, s)...), &got)
		return got
	}
	g := newGate(t, server.url, 0)
	j := start(t, nil, u.args(g.url, s)...)
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

// check compares what cairn tells with what nginx has logged, and both with what is allowed.
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
func (u update) again(t testing.TB, server *nginx, s slots) {
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

// changed is when a file was written last.
func changed(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime().UnixNano()
}

// TestRememberedSeedHasChanged: what a device held is remembered, and what it does not hold any more costs a
// download.
func TestRememberedSeedHasChanged(t *testing.T) {
	t.Parallel()
	r := publish(t, ext4(t))
	server := newNginx(t, r.dir)
	s, state := newSlots(t, r, true), t.TempDir()
	u := update{name: "seed remembered"}
	known := u.known(t, r, s)
	args := append(u.args(server.url, s), "--state", state)
	cairn(t, args...)
	server.sent(t)
	s.change(t)
	must(t, "dd", "if=/dev/zero", "of="+strings.Replace(s.b, "#root-b", "p3", 1), "bs=1M", "count=40", "conv=fsync",
		"status=none")
	ended := run(t, "cairn", args...)
	if ended.status != 0 || strings.Contains(ended.stderr, "scanning "+s.a) {
		t.Fatalf("exit status %d, or the seed was scanned again\n%s", ended.status, ended.stderr)
	}
	var got assembled
	parse(t, ended.stdout, &got)
	u.check(t, got, server.sent(t), r.needed(t, known, s.seed(t)))
	cairn(t, "verify", r.index("b"), s.b)
}

// TestPlanForetells: plan tells what assemble then does, and neither fetches nor writes.
func TestPlanForetells(t *testing.T) {
	t.Parallel()
	r := publish(t, ext4(t))
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
		parse(t, cairn(t, args...), &done)
		server.sent(t)
		foretold.Written = done.Written
		if diff := cmp.Diff(foretold, done); diff != "" {
			t.Errorf("%s: assemble has done other than plan tells (-plan +assemble)\n%s", u.name, diff)
		}
	}
}

// TestUpdateFile: a file is replaced whole, and what it held serves as a seed.
func TestUpdateFile(t *testing.T) {
	t.Parallel()
	r := publish(t, ext4(t))
	server := newNginx(t, r.dir)
	dir := t.TempDir()
	target := writeFile(t, dir, "root.img", readFile(t, r.a))
	old := open(t, target)
	var got assembled
	parse(t, cairn(t, "assemble", "--json", server.url+"/b.caibx", target, "--seed", r.a+"="+r.index("a")), &got)
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
	if got.InPlace != got.Size || got.Written != 0 || changed(t, target) != before || server.sent(t) != (traffic{}) {
		t.Errorf("once more: %+v, want all of it in place", got)
	}
}

// TestCacheSavesDownloads: a second machine's worth of work costs no more chunks.
func TestCacheSavesDownloads(t *testing.T) {
	t.Parallel()
	r := publish(t, ext4(t))
	server := newNginx(t, r.dir)
	dir := t.TempDir()
	for n, fresh := range []bool{true, false} {
		target := filepath.Join(dir, fmt.Sprint("target", n))
		cairn(t, "assemble", "-c", filepath.Join(dir, "cache"), server.url+"/b.caibx", target)
		wantSame(t, target, r.b)
		if wire := server.sent(t); (wire.chunks > 0) != fresh {
			t.Errorf("time %d: nginx has sent %+v", n, wire)
		}
	}
}

// TestTags: partitions are found by label and UUID among all disks of the machine.
func TestTags(t *testing.T) {
	t.Parallel()
	r := publish(t, ext4(t))
	disk := filepath.Join(t.TempDir(), "disk.img")
	label := fmt.Sprintf("e2e-%d", os.Getpid())
	parts := []testimages.Part{{Name: label + "-a", Size: 48 * mib, Image: r.a}, {Name: label + "-b", Size: 48 * mib}}
	if err := testimages.GPTDisk(disk, 512, parts...); err != nil {
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
	for _, target := range []string{"PARTLABEL=" + label + "-b", "PARTUUID=" + strings.ToUpper(known.Partitions[1].UUID)} {
		must(t, "dd", "if=/dev/zero", "of="+node+"p2", "bs=1M", "count=40", "conv=fsync", "status=none")
		cairn(t, "assemble", r.index("b"), target, "--seed", "PARTLABEL="+label+"-a="+r.index("a"))
		if sum(t, node+"p2", 0, 40*mib) != sum(t, r.b, 0, 40*mib) {
			t.Errorf("%s does not hold the image", target)
		}
	}
}
