package release_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cairn/blob/release"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/local"
	"cairn/store/locate"
)

func openRecords(t *testing.T, b store.Bucket) *gcroot.Dir {
	t.Helper()
	d, err := gcroot.Open(b, gcroot.Options{Pause: func(ctx context.Context) error { return store.Sleep(ctx, time.Millisecond) }})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// removing is a bucket of records that removes all leases at the write of a name with a suffix.
type removing struct {
	*mem.Bucket
	at    string
	times atomic.Int64
}

func (b *removing) Write(ctx context.Context, name string, data []byte) error {
	err := b.Bucket.Write(ctx, name, data)
	if filepath.Ext(name) == b.at && b.times.Add(1) == 1 {
		for o := range b.List(ctx, "leases/") {
			err = errors.Join(err, b.Remove(ctx, o.Name))
		}
	}
	return err
}

// TestLapsedLease checks that a publisher whose lease is removed asks the store for every chunk again, under a new
// lease, before its index appears.
func TestLapsedLease(t *testing.T) {
	image, _ := releases()
	for name, vanish := range map[string]bool{"chunks are there": false, "a chunk is gone": true} {
		t.Run(name, func(t *testing.T) {
			chunks, records := new(mem.Bucket), &removing{Bucket: new(mem.Bucket), at: gcroot.Suffix}
			mustPublish(t, image, chunks, "old.caibx", release.PublisherOptions{})
			o := release.PublisherOptions{Records: openRecords(t, records), Name: "new.caibx"}
			if vanish {
				o.Records = openRecords(t, &vanishing{removing: records, chunks: chunks})
			}
			_, err := publish(t.Context(), image, chunks, "new.caibx", o, false)
			_, statErr := chunks.Stat(t.Context(), "new.caibx")
			switch vanished, is := errors.AsType[*release.VanishedError](err); {
			case vanish && (!is || !errors.Is(statErr, store.ErrNotFound)):
				t.Errorf("published: %v (%v); the index: %v", err, vanished, statErr)
			case !vanish && (err != nil || statErr != nil):
				t.Errorf("published: %v; the index: %v", err, statErr)
			}
			l, err := o.Records.List(t.Context())
			if err != nil || l.Leases > 0 {
				t.Errorf("left: %+v, %v", l, err)
			}
			if vanish && len(l.Roots) > 0 {
				t.Errorf("a gc root without its chunks is left, which others would believe: %+v", l.Roots)
			}
		})
	}
}

// vanishing removes a chunk when it removes the leases.
type vanishing struct {
	*removing
	chunks *mem.Bucket
}

func (b *vanishing) Write(ctx context.Context, name string, data []byte) error {
	before := b.times.Load()
	err := b.removing.Write(ctx, name, data)
	if b.times.Load() == before {
		return err
	}
	for o := range b.chunks.List(ctx, "") {
		if _, _, is := store.ChunkObject(o.Name); is {
			return errors.Join(err, b.chunks.Remove(ctx, o.Name))
		}
	}
	return err
}

// TestStoppedAfterLook checks the publisher that stops between its last look at its lease and its index: meanwhile its
// gc root may be retired. Afterwards it has a live one.
func TestStoppedAfterLook(t *testing.T) {
	image, _ := releases()
	chunks, records := new(mem.Bucket), new(mem.Bucket)
	d := openRecords(t, records)
	o := release.PublisherOptions{Records: d, Name: "x.caibx"}
	stopped := &hooked{Bucket: chunks, before: func() {
		for object := range records.List(t.Context(), "leases/") {
			if err := records.Remove(t.Context(), object.Name); err != nil {
				t.Error(err)
			}
		}
		l, err := d.List(t.Context())
		if err != nil || len(l.Roots) != 1 {
			t.Errorf("before the index: %+v, %v", l, err)
		}
		for _, e := range l.Roots {
			if err := d.Retire(t.Context(), e); err != nil {
				t.Error(err)
			}
		}
	}}
	mustPublish(t, image, stopped, "x.caibx", o)
	l, err := d.List(t.Context())
	live := 0
	for _, e := range l.Roots {
		if e.Retired.IsZero() {
			live++
		}
	}
	if err != nil || live != 1 || l.Leases > 0 {
		t.Errorf("afterwards: %+v, %v", l, err)
	}
}

// hooked calls before before an index is written.
type hooked struct {
	store.Bucket
	before func()
}

func (b *hooked) Write(ctx context.Context, name string, data []byte) error {
	if filepath.Ext(name) == release.IndexSuffix {
		b.before()
	}
	return b.Bucket.Write(ctx, name, data)
}

// TestCollectBeside publishes and collects in one store: what is published is whole at every moment.
func TestCollectBeside(t *testing.T) {
	old, next := releases()
	chunks := new(mem.Bucket)
	d := openRecords(t, new(mem.Bucket))
	x := mustPublish(t, old, chunks, "x.caibx", release.PublisherOptions{Records: d, Name: "x.caibx"})
	y := mustPublish(t, next, chunks, "y.caibx", release.PublisherOptions{Records: d, Name: "y.caibx"})
	l, err := d.List(t.Context())
	if err != nil || !l.Managed || len(l.Roots) != 2 {
		t.Fatalf("published: %+v, %v", l, err)
	}
	collect := func(grace time.Duration) keep.CollectReport {
		t.Helper()
		r, err := keep.Collect(t.Context(), chunks, d, keep.CollectOptions{Grace: grace})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := collect(0); r.Removed.Chunks != 0 || r.Kept.Chunks != 6 {
		t.Errorf("all is published: %+v", r)
	}
	for _, e := range l.Roots {
		if e.Index == x.Digest() {
			if err := d.Retire(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r := collect(time.Hour); r.Removed.Chunks != 0 || r.Fading.Chunks != 1 || r.Retired != 1 {
		t.Errorf("in the grace: %+v", r)
	}
	if r := collect(0); r.Removed.Chunks != 1 || r.Kept.Chunks != 5 || r.RemovedRoots != 1 {
		t.Errorf("after the grace: %+v", r)
	}
	for _, c := range y.All() {
		if _, err := store.NewChunks(chunks, y.Algorithm()).Stat(t.Context(), c.Digest); err != nil {
			t.Error(err)
		}
	}
	if _, err := keep.Collect(t.Context(), chunks, openRecords(t, new(mem.Bucket)), keep.CollectOptions{}); !errors.Is(err, gcroot.ErrUnmanaged) {
		t.Errorf("without records: %v", err)
	}
}

// TestRecordsDenied checks that a store whose neighbours cannot be written is published to as before, if gc does not
// manage it.
func TestRecordsDenied(t *testing.T) {
	image, _ := releases()
	records := denying{new(mem.Bucket)}
	d := openRecords(t, records)
	var notes []release.Note
	o := release.PublisherOptions{Records: d, Name: "x.caibx", Notes: noted(&notes)}
	chunks := new(mem.Bucket)
	mustPublish(t, image, chunks, "x.caibx", o)
	if len(notes) != 1 {
		t.Errorf("notes: %v", notes)
	} else if n, is := notes[0].(release.NotRecorded); !is || !errors.Is(n.Err, store.ErrDenied) {
		t.Errorf("notes: %v", notes)
	}
	if err := openRecords(t, records.Bucket).Manage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := publish(t.Context(), image, chunks, "y.caibx", o, false); !errors.Is(err, store.ErrDenied) {
		t.Errorf("gc manages the store: %v", err)
	}
}

type denying struct{ *mem.Bucket }

func (denying) Write(context.Context, string, []byte) error { return store.ErrDenied }

func TestRecordName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	parse := func(text string) locate.Location {
		l, err := locate.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if err := errors.Join(os.MkdirAll("real/default.castr", 0o755), os.Mkdir("links", 0o755), os.Symlink("real", "dir"),
		os.Symlink("../real/default.castr", "links/default.castr")); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{
		{"dir/default.castr", "dir/v1.caibx", "v1.caibx"},
		{"links/default.castr", "real/v1.caibx", "v1.caibx"},
		{"links/default.castr/", "links/v1.caibx", dir + "/links/v1.caibx"},
		{"default.castr", "v1.caibx", "v1.caibx"},
		{"./default.castr/", dir + "/v1.caibx", "v1.caibx"},
		{dir + "/default.castr", "sub/../v1.caibx", "v1.caibx"},
		{"sub/default.castr", "v1.caibx", dir + "/v1.caibx"},
		{"default.castr", "a/b.caibx", "a/b.caibx"},
		{"s3://bucket/p/default.castr", "s3://bucket/p/v1.caibx", "v1.caibx"},
		{"s3://bucket/p/default.castr", "s3://bucket/v1.caibx", "s3://bucket/v1.caibx"},
		{"s3://bucket/p/default.castr", "v1.caibx", dir + "/v1.caibx"}, // it is not beside the store
		{"s3://bucket/p/default.castr", "-", "-"},
		{"sftp://u@host/srv/default.castr", "sftp://u@host/srv/x/v1.caibx", "x/v1.caibx"},
	} {
		if got := release.RecordName(parse(c[0]), parse(c[1])); got != c[2] {
			t.Errorf("RecordName(%s, %s) = %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

// TestLinkedStore checks that a store has the same gc roots under each name of its directory.
func TestLinkedStore(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.MkdirAll(at("real/default.castr"), 0o755), os.Symlink("real/default.castr", at("other.castr")),
		os.Symlink("other.castr", at("third")), os.Symlink("nowhere", at("dangling.castr"))); err != nil {
		t.Fatal(err)
	}
	for store, want := range map[string]string{
		"real/default.castr": "real/default.caroots", "other.castr": "real/default.caroots", "other.castr/": "real/default.caroots",
		"third": "real/default.caroots", "dangling.castr": "dangling.caroots", "absent.castr": "absent.caroots",
	} {
		got, err := release.RecordsDir(locate.Path(dir + "/" + store))
		if err != nil || got.String() != at(want) {
			t.Errorf("RecordsDir(%s) = %v, %v, want %s", store, got, err, want)
		}
	}
}

// TestNameOutside checks that a gc root cannot name an index outside the directory of the store by a path that only
// looks like one beside it.
func TestNameOutside(t *testing.T) {
	s := &release.Indexes{Store: locate.Path("/srv/images/default.castr")}
	for _, name := range []string{"../x.caibx", "a/../../x.caibx", "./x.caibx", "a//x.caibx", ".."} {
		if at, err := s.Locate(release.Item{Name: name}); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("Locate(%q) = %v, %v", name, at, err)
		}
	}
	if at, err := s.Locate(release.Item{Name: "a/..x.caibx"}); err != nil || at.String() != "/srv/images/a/..x.caibx" {
		t.Errorf("Locate = %v, %v", at, err)
	}
}

// TestRemoveItem checks that removing an index leaves one that replaced it, and takes its profile with it.
func TestRemoveItem(t *testing.T) {
	old, next := releases()
	dir := t.TempDir()
	b, err := local.Create(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	records, err := local.Create(filepath.Join(dir, "default.caroots"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := openRecords(t, records)
	beside := local.At(dir, local.Options{})
	write := func(image []byte, name string) {
		t.Helper()
		publishTo(t, image, b, beside, name, release.PublisherOptions{Records: d, Name: name})
	}
	write(old, "x.caibx")
	write(old, "y.caibx")
	write(next, "y.caibx")
	if err := os.WriteFile(filepath.Join(dir, "x.caprf"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var access locate.Access
	s := &release.Indexes{Store: locate.Path(filepath.Join(dir, "default.castr")), Records: d, Bucket: access.FileBucket}
	published, orphans, err := s.Items(t.Context())
	if err != nil || len(published) != 2 || len(orphans) != 1 || orphans[0].Name != "y.caibx" {
		t.Fatalf("Items = %v, %v, %v", published, orphans, err)
	}
	removed, err := s.Remove(t.Context(), append(orphans, published[0]), 0)
	if err != nil || len(removed) != 2 {
		t.Fatalf("Remove = %v, %v", removed, err)
	}
	for name, stays := range map[string]bool{"x.caibx": false, "x.caprf": false, "y.caibx": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); stays != !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if published, orphans, err := s.Items(t.Context()); err != nil || len(published) != 1 || len(orphans) != 0 {
		t.Errorf("afterwards: %v, %v, %v", published, orphans, err)
	}
}

// TestPublishedSince: an index whose publisher had written the gc root only when gc looked is not removed, since it is there
// by the time of the turn.
func TestPublishedSince(t *testing.T) {
	image, _ := releases()
	dir := t.TempDir()
	b, err := local.Create(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := openRecords(t, new(mem.Bucket))
	publishTo(t, image, b, local.At(dir, local.Options{}), "x.caibx", release.PublisherOptions{Records: d, Name: "x.caibx"})
	var access locate.Access
	s := &release.Indexes{Store: locate.Path(filepath.Join(dir, "default.castr")), Records: d, Bucket: access.FileBucket}
	index, hidden := filepath.Join(dir, "x.caibx"), filepath.Join(dir, "hidden")
	if err := os.Rename(index, hidden); err != nil {
		t.Fatal(err)
	}
	_, orphans, err := s.Items(t.Context())
	if err != nil || len(orphans) != 1 {
		t.Fatalf("Items = %v, %v", orphans, err)
	}
	if err := os.Rename(hidden, index); err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Remove(t.Context(), orphans, 0); err != nil || len(removed) != 0 {
		t.Errorf("Remove = %v, %v", removed, err)
	}
	if _, err := os.Stat(index); err != nil {
		t.Error(err)
	}
	if published, orphans, err := s.Items(t.Context()); err != nil || len(published) != 1 || len(orphans) != 0 {
		t.Errorf("afterwards: %v, %v, %v", published, orphans, err)
	}
}

// TestBaseWithoutRoot checks that a base is used in a store that gc manages only if it has a gc root: gc may have removed
// chunks that a sample does not ask for.
func TestBaseWithoutRoot(t *testing.T) {
	old, next := releases()
	for name, c := range map[string]struct{ managed, root, want bool }{
		"gc does not manage the store": {false, false, true},
		"with a gc root":               {true, true, true},
		"without one":                  {true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			chunks, d := new(mem.Bucket), openRecords(t, new(mem.Bucket))
			x := mustPublish(t, old, chunks, "x.caibx", release.PublisherOptions{})
			if c.root {
				if _, err := d.Write(t.Context(), &gcroot.Root{Name: "x.caibx", Index: x}, 1); err != nil {
					t.Fatal(err)
				}
			}
			if c.managed {
				if err := d.Manage(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			var notes []release.Note
			o := release.PublisherOptions{Records: d, Name: "y.caibx", Bases: []release.Base{{At: locate.Path("x.caibx"), Index: x}}, Notes: noted(&notes)}
			mustPublish(t, next, chunks, "y.caibx", o)
			published(t, chunks, "y.caibx")
			if used := len(notes) == 0; used != c.want {
				t.Errorf("notes: %v; want the base to be used: %v", notes, c.want)
			}
		})
	}
}
