package keep_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/storetest"
)

// data returns the content of chunk i, half of which compresses.
func data(i int) []byte {
	return append(storetest.Bytes(uint64(i), 40+i%7), make([]byte, 40)...)
}

func digestOf(i int) blob.Digest { return blob.SHA512_256.Sum(data(i)) }

func name(i int) string { return store.ObjectName(digestOf(i), true) }

// filled returns a store with the chunks from lo to hi.
func filled(t testing.TB, lo, hi int) *mem.Bucket {
	t.Helper()
	b := new(mem.Bucket)
	w, err := store.NewWriter(b, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := lo; i < hi; i++ {
		if _, err := w.Put(t.Context(), digestOf(i), data(i)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// index has the chunks from lo to hi, and the first of them a second time.
func index(t testing.TB, lo, hi int) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1, Avg: 100, Max: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for n := lo; n <= hi; n++ {
		i := n
		if n == hi {
			i = lo
		}
		if _, err := b.Add(int64(len(data(i))), digestOf(i)); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func write(t testing.TB, b store.Bucket, name string, data []byte) {
	t.Helper()
	if err := b.Write(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, r store.Reader, name string) []byte {
	t.Helper()
	data, err := r.Read(t.Context(), name, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unlisted hides the List method of a store, as on a web server.
type unlisted struct{ store.Reader }

// damage damages chunks 0 to 4 of a store in typical ways, and adds objects that are not chunks.
func damage(t *testing.T, b *mem.Bucket) {
	t.Helper()
	flipped := read(t, b, name(0))
	flipped[len(flipped)-1] ^= 1
	write(t, b, name(0), flipped)
	write(t, b, name(1), read(t, b, name(2)))
	write(t, b, name(3), nil)
	if err := b.Remove(t.Context(), name(4)); err != nil {
		t.Fatal(err)
	}
	write(t, b, "README", []byte("hello"))
	write(t, b, "abcd/README", []byte("hello"))
	write(t, b, "0000/"+name(2)[5:], []byte("hello"))
}

// found collects the findings of a verify: kinds and fates by name.
func found(list *[]string) func(keep.Finding) {
	return func(f keep.Finding) {
		*list = append(*list, strings.TrimSpace(fmt.Sprint(f.Kind, " ", f.Name, " ", f.Fate)))
	}
}

func sorted(list ...string) []string {
	slices.Sort(list)
	return list
}

func TestVerify(t *testing.T) {
	misnamed := "misnamed 0000/" + name(2)[5:]
	for _, c := range []struct {
		name    string
		options keep.VerifyOptions
		indexed bool
		want    keep.VerifyReport // without the sizes and the others
		found   []string
	}{
		{"a good store", keep.VerifyOptions{Workers: 2}, false, keep.VerifyReport{Chunks: 20}, nil},
		{"damaged", keep.VerifyOptions{Workers: 3}, false, keep.VerifyReport{Chunks: 19, Damaged: 2, Empty: 1},
			[]string{"damaged " + name(0), "damaged " + name(1), "empty " + name(3), misnamed}},
		{"damaged, by index", keep.VerifyOptions{}, true, keep.VerifyReport{Chunks: 15, Damaged: 2, Empty: 1, Missing: 1},
			[]string{"damaged " + name(0), "damaged " + name(1), "empty " + name(3), "missing " + name(4)}},
		{"repaired", keep.VerifyOptions{Repair: []store.Reader{filled(t, 1, 2), unlisted{filled(t, 0, 2)}}}, true,
			keep.VerifyReport{Chunks: 15, Damaged: 2, Empty: 1, Missing: 1, Repaired: 2},
			[]string{"damaged " + name(0) + " repaired", "damaged " + name(1) + " repaired", "empty " + name(3), "missing " + name(4)}},
		{"repaired and removed", keep.VerifyOptions{Repair: []store.Reader{filled(t, 1, 2)}, Remove: true}, false,
			keep.VerifyReport{Chunks: 19, Damaged: 2, Empty: 1, Repaired: 1, Removed: 2},
			[]string{"damaged " + name(0) + " removed", "damaged " + name(1) + " repaired", "empty " + name(3) + " removed", misnamed}},
		{"removed by index", keep.VerifyOptions{Remove: true}, true,
			keep.VerifyReport{Chunks: 15, Damaged: 2, Empty: 1, Missing: 1, Removed: 3},
			[]string{"damaged " + name(0) + " removed", "damaged " + name(1) + " removed", "empty " + name(3) + " removed", "missing " + name(4)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := filled(t, 0, 20)
			if c.found != nil {
				damage(t, b)
			}
			if c.indexed {
				c.options.Indexes = []*blob.Index{index(t, 0, 10), index(t, 5, 15)}
			}
			var got []string
			c.options.Bucket, c.options.Found = b, found(&got)
			report, err := keep.Verify(t.Context(), b, c.options)
			if err != nil {
				t.Fatal(err)
			}
			if c.found != nil && !c.indexed && (report.Foreign.Objects != 2 || report.Misnamed.Objects != 1) {
				t.Errorf("others: %+v, %+v", report.Foreign, report.Misnamed)
			}
			report.Bytes, report.Foreign, report.Misnamed = 0, keep.Others{}, keep.Others{}
			if diff := cmp.Diff(c.want, report); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(sorted(c.found...), sorted(got...)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			again, err := keep.Verify(t.Context(), b, keep.VerifyOptions{Indexes: c.options.Indexes})
			left := c.want.Damaged + c.want.Empty - c.want.Removed - c.want.Repaired
			if err != nil || again.Damaged+again.Empty != left {
				t.Errorf("afterwards %d are damaged or empty, %v, want %d", again.Damaged+again.Empty, err, left)
			}
		})
	}
}

// TestVerifyForms: chunks of either algorithm, compressed or not, are accepted, unless one
// algorithm is given.
func TestVerifyForms(t *testing.T) {
	b, x := new(mem.Bucket), []byte("some bytes")
	for _, a := range []blob.Algorithm{blob.SHA256, blob.SHA512_256} {
		w, err := store.NewWriter(b, store.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Put(t.Context(), a.Sum(x), x); err != nil {
			t.Fatal(err)
		}
		write(t, b, store.ObjectName(a.Sum(x[:5]), false), x[:5])
		write(t, b, store.ObjectName(a.Sum(x), false), []byte("some other bytes")) // beside the intact one
	}
	report, err := keep.Verify(t.Context(), b, keep.VerifyOptions{})
	if err != nil || report.Chunks != 6 || report.Damaged != 2 {
		t.Errorf("Verify = %+v, %v, want 6 chunks, 2 damaged", report, err)
	}
	sha256 := blob.SHA256
	report, err = keep.Verify(t.Context(), b, keep.VerifyOptions{Algorithm: &sha256})
	if err != nil || report.Chunks != 6 || report.Damaged != 4 {
		t.Errorf("Verify for SHA-256 = %+v, %v, want 6 chunks, 4 damaged", report, err)
	}
	// A plain chunk is repaired as a plain one.
	if _, err := keep.Verify(t.Context(), b, keep.VerifyOptions{Bucket: b, Repair: []store.Reader{b}}); err != nil {
		t.Fatal(err)
	}
	report, err = keep.Verify(t.Context(), b, keep.VerifyOptions{})
	if err != nil || report.Bad() != 0 {
		t.Errorf("after the repair: %+v, %v", report, err)
	}
}

// listed is a reader with the listing of another store.
type listed struct {
	store.Reader
	store.Lister
}

// TestVerifyStoreFails: a chunk damaged in transfer is read again; a failing store ends the job.
func TestVerifyStoreFails(t *testing.T) {
	b := filled(t, 0, 20)
	for _, c := range []struct {
		fault storetest.Fault
		want  error
	}{
		{storetest.FlipsBit, nil}, {storetest.Truncates(3), nil}, {storetest.Fails(store.ErrUnavailable), store.ErrUnavailable},
		{storetest.Fails(store.ErrDenied), store.ErrDenied}, {storetest.Fails(store.ErrNotFound), nil},
	} {
		r := listed{storetest.Faulty(b, storetest.Nth(7), c.fault), b}
		report, err := keep.Verify(t.Context(), r, keep.VerifyOptions{Workers: 2})
		if !errors.Is(err, c.want) || err == nil && report.Bad() != 0 {
			t.Errorf("Verify = %+v, %v, want %v", report, err, c.want)
		}
	}
	broken := listed{b, brokenLister{b}}
	if _, err := keep.Verify(t.Context(), broken, keep.VerifyOptions{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Verify with a broken listing = %v", err)
	}
	if _, err := keep.Verify(t.Context(), unlisted{b}, keep.VerifyOptions{}); !errors.Is(err, keep.ErrCannotList) {
		t.Errorf("Verify without a listing = %v", err)
	}
	if _, err := keep.Verify(t.Context(), b, keep.VerifyOptions{Bucket: noRemover{b}, Remove: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Verify where nothing can be removed = %v", err)
	}
	full := errors.New("no space left")
	damage(t, b)
	o := keep.VerifyOptions{Bucket: storetest.FaultyWrites(b, storetest.Always, full), Repair: []store.Reader{filled(t, 0, 20)}}
	if report, err := keep.Verify(t.Context(), b, o); !errors.Is(err, full) || report.Repaired != 0 {
		t.Errorf("Verify that cannot write = %+v, %v", report, err)
	}
}

type noRemover struct{ store.Bucket }

// brokenLister fails after some objects.
type brokenLister struct{ store.Lister }

func (l brokenLister) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		n := 0
		for o := range l.Lister.List(ctx, prefix) {
			if n++; n == 5 {
				yield(o, store.ErrUnavailable)
				return
			}
			if !yield(o, nil) {
				return
			}
		}
	}
}

// TestVerifyResumes: a resumed verify does not read the chunks up to the last mark again, but
// counts them.
func TestVerifyResumes(t *testing.T) {
	const chunks = 5000 // more than one listing takes: sixteen shards, with a mark each
	b := filled(t, 0, chunks)
	damage(t, b)
	whole, err := keep.Verify(t.Context(), b, keep.VerifyOptions{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, stop := range []int{1, 7, 16} {
		var marks []keep.Mark
		var names []string
		enough := errors.New("enough")
		o := keep.VerifyOptions{Workers: 2, Found: found(&names), Done: func(m keep.Mark) error {
			if marks = append(marks, m); len(marks) == stop {
				return enough
			}
			return nil
		}}
		if _, err := keep.Verify(t.Context(), b, o); !errors.Is(err, enough) {
			t.Fatalf("the first Verify = %v", err)
		}
		r := &storetest.Remote{Full: b}
		o.After, o.Done = &marks[stop-1], nil
		names = nil // the findings before the mark are reported again
		report, err := keep.Verify(t.Context(), r, o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole, report); diff != "" {
			t.Errorf("stopped at mark %d: report (-whole +in two parts):\n%s", stop, diff)
		}
		if got, most := r.Counts().Gets, whole.Chunks-o.After.Report.Chunks+10; got > most {
			t.Errorf("stopped at mark %d: %d chunks are read afterwards, want at most %d", stop, got, most)
		}
		if len(names) != 4 {
			t.Errorf("stopped at mark %d: %d findings: %q", stop, len(names), names)
		}
	}
}

// TestCancelled: a cancelled job returns an error, and nothing runs afterwards.
func TestCancelled(t *testing.T) {
	b := filled(t, 0, 300)
	jobs := map[string]func(context.Context, store.Reader) error{
		"verify": func(ctx context.Context, r store.Reader) error {
			_, err := keep.Verify(ctx, r, keep.VerifyOptions{Workers: 4})
			return err
		},
		"stat": func(ctx context.Context, r store.Reader) error {
			_, err := keep.Stat(ctx, r, keep.StatOptions{})
			return err
		},
		"copy": func(ctx context.Context, r store.Reader) error {
			_, err := keep.Copy(ctx, r, new(mem.Bucket), keep.CopyOptions{Workers: 4, Writer: store.WriterOptions{Uploads: 4}})
			return err
		},
	}
	for name, job := range jobs {
		for _, after := range []time.Duration{time.Second / 2, 3 * time.Second, 10 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), after)
				defer cancel()
				r := &storetest.Remote{Full: b, Latency: time.Second}
				if err := job(ctx, r); !errors.Is(err, context.DeadlineExceeded) && !(name == "stat" && after > time.Second) {
					t.Errorf("%s after %v = %v", name, after, err)
				}
			})
		}
	}
}

func TestStat(t *testing.T) {
	b := filled(t, 0, 20)
	size := func(lo, hi int) (sum int64) {
		for i := lo; i < hi; i++ {
			sum += int64(len(read(t, b, name(i))))
		}
		return sum
	}
	plain := func(lo, hi int) (sum int64) {
		for i := lo; i < hi; i++ {
			sum += int64(len(data(i)))
		}
		return sum
	}
	stored := size(0, 20)
	write(t, b, "README", []byte("hello"))
	write(t, b, store.ObjectName(digestOf(30), false), nil)
	write(t, b, store.ObjectName(digestOf(19), false), []byte("12345")) // the compressed one is present too
	indexes := []*blob.Index{index(t, 0, 10), index(t, 5, 15), index(t, 14, 25)}
	want := keep.StatReport{
		Listed: true, Amount: keep.Amount{Chunks: 20, Bytes: stored + 5}, Plain: 1, Empty: 1,
		Foreign:    keep.Others{Objects: 1, Bytes: 5, First: []string{"README"}},
		ImageBytes: indexes[0].Size() + indexes[1].Size() + indexes[2].Size(), DistinctBytes: plain(0, 25),
		Indexes: []keep.IndexStat{
			{ImageBytes: indexes[0].Size(), Distinct: 10, DistinctBytes: plain(0, 10), Stored: keep.Amount{Chunks: 10, Bytes: size(0, 10)},
				Exclusive: keep.Amount{Chunks: 5, Bytes: size(0, 5)}},
			{ImageBytes: indexes[1].Size(), Distinct: 10, DistinctBytes: plain(5, 15), Stored: keep.Amount{Chunks: 10, Bytes: size(5, 15)},
				Exclusive: keep.Amount{Chunks: 4, Bytes: size(10, 14)}},
			{ImageBytes: indexes[2].Size(), Distinct: 11, DistinctBytes: plain(14, 25), Stored: keep.Amount{Chunks: 6, Bytes: size(14, 20) + 5},
				Exclusive: keep.Amount{Chunks: 5, Bytes: size(15, 20) + 5}, Missing: 5},
		},
	}
	got, err := keep.Stat(t.Context(), b, keep.StatOptions{Indexes: keep.Each(indexes)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Stat (-want +got):\n%s", diff)
	}
	got, err = keep.Stat(t.Context(), b, keep.StatOptions{Indexes: keep.Each(indexes[:1])})
	if want := (keep.Amount{Chunks: 10, Bytes: size(10, 20) + 5}); err != nil || got.Unreferenced != want {
		t.Errorf("Stat: unreferenced %+v, %v, want %+v", got.Unreferenced, err, want)
	}
	got, err = keep.Stat(t.Context(), unlisted{b}, keep.StatOptions{Indexes: keep.Each(indexes), Workers: 3})
	if err != nil || got.Listed || got.Chunks != 20 {
		t.Errorf("Stat without a listing = %+v, %v", got, err)
	}
	for i, x := range got.Indexes[:2] { // of the chunk in both forms only the compressed one is requested
		if diff := cmp.Diff(want.Indexes[i], x); diff != "" {
			t.Errorf("Stat without a listing (-want +got):\n%s", diff)
		}
	}
	if _, err := keep.Stat(t.Context(), unlisted{b}, keep.StatOptions{}); !errors.Is(err, keep.ErrCannotList) {
		t.Errorf("Stat without listing and indexes = %v", err)
	}
}

func TestCopy(t *testing.T) {
	for _, c := range []struct {
		name    string
		damaged bool
		indexes []*blob.Index
		hide    bool
		want    keep.CopyReport
		except  []*blob.Index
	}{
		{name: "of indexes, without those of others", indexes: []*blob.Index{index(t, 0, 8), index(t, 6, 12)},
			except: []*blob.Index{index(t, 0, 3), index(t, 11, 14)},
			want:   keep.CopyReport{Wanted: 8, Held: 4, Copied: keep.Amount{Chunks: 4}, Whole: []bool{true, true}}},
		{"all", false, nil, false, keep.CopyReport{Wanted: 20, Held: 5, Copied: keep.Amount{Chunks: 15}}, nil},
		{"of indexes", false, []*blob.Index{index(t, 0, 8), index(t, 6, 12)}, true,
			keep.CopyReport{Wanted: 12, Held: 5, Copied: keep.Amount{Chunks: 7}, Whole: []bool{true, true}}, nil},
		{"damaged", true, nil, false, keep.CopyReport{Wanted: 19, Held: 5, Copied: keep.Amount{Chunks: 11}, Damaged: 2, Empty: 1}, nil},
		{"damaged, of indexes", true, []*blob.Index{index(t, 0, 8), index(t, 5, 12), index(t, 4, 5)}, false,
			keep.CopyReport{Wanted: 12, Held: 5, Copied: keep.Amount{Chunks: 3}, Damaged: 2, Empty: 1, Missing: 1, Whole: []bool{false, true, false}}, nil},
		{"of nothing", false, []*blob.Index{index(t, 100, 102)}, false, keep.CopyReport{Wanted: 2, Missing: 2, Whole: []bool{false}}, nil},
	} {
		for _, uploads := range []int{0, 4} {
			t.Run(fmt.Sprint(c.name, " ", uploads), func(t *testing.T) {
				from, to := filled(t, 0, 20), filled(t, 7, 12)
				if c.damaged {
					damage(t, from)
				}
				var r store.Reader = from
				if c.hide {
					r = unlisted{from}
				}
				remote, bad := &storetest.Remote{Full: to}, []string{}
				o := keep.CopyOptions{Indexes: c.indexes, Except: c.except, Workers: 3, Writer: store.WriterOptions{Uploads: uploads}, Found: found(&bad)}
				got, err := keep.Copy(t.Context(), r, remote, o)
				if err != nil {
					t.Fatal(err)
				}
				got.Copied.Bytes, got.Done = 0, 0
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
				if int64(len(bad)) != got.Bad() {
					t.Errorf("findings: %q, want %d", bad, got.Bad())
				}
				if n := remote.Counts(); n.Puts != c.want.Copied.Chunks || n.Heads != 0 {
					t.Errorf("the other store is asked %+v", n)
				}
				checkCopy(t, from, to)
			})
		}
	}
}

// checkCopy verifies the copy, and checks that its objects equal those of the original.
func checkCopy(t *testing.T, from, to *mem.Bucket) {
	t.Helper()
	report, err := keep.Verify(t.Context(), to, keep.VerifyOptions{})
	if err != nil || report.Bad() > 0 {
		t.Errorf("the copy is %+v, %v", report, err)
	}
	for o := range to.List(t.Context(), "") {
		if !bytes.Equal(read(t, to, o.Name), read(t, from, o.Name)) {
			t.Errorf("%s is compressed anew", o.Name)
		}
	}
}

// TestCopyResumes: a second copy completes an interrupted one, and reads only the rest.
func TestCopyResumes(t *testing.T) {
	const chunks, first = 5000, 3000
	from, to, full := filled(t, 0, chunks), new(mem.Bucket), errors.New("no space left")
	o := keep.CopyOptions{Workers: 2}
	_, err := keep.Copy(t.Context(), from, listedBucket{storetest.FaultyWrites(to, storetest.After(first), full), to}, o)
	if !errors.Is(err, full) {
		t.Fatalf("Copy to a full disk = %v", err)
	}
	r := &storetest.Remote{Full: from}
	report, err := keep.Copy(t.Context(), r, to, o)
	if err != nil || report.Held != first || report.Copied.Chunks != chunks-first || r.Counts().Gets != chunks-first {
		t.Errorf("the second Copy = %+v, %v with %+v", report, err, r.Counts())
	}
	checkCopy(t, from, to)
}

type listedBucket struct {
	store.Bucket
	store.Lister
}

// TestCopyCompressesAnew: a chunk that casync could not read is compressed again.
func TestCopyCompressesAnew(t *testing.T) {
	from, to := new(mem.Bucket), new(mem.Bucket)
	var gzipped bytes.Buffer
	z := gzip.NewWriter(&gzipped)
	_, err := z.Write(data(0))
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	write(t, from, name(0), gzipped.Bytes())
	write(t, from, store.ObjectName(digestOf(1), false), data(1))
	if report, err := keep.Copy(t.Context(), from, to, keep.CopyOptions{}); err != nil || report.Copied.Chunks != 2 {
		t.Fatalf("Copy = %+v, %v", report, err)
	}
	want := filled(t, 0, 2)
	for i := range 2 {
		if !bytes.Equal(read(t, to, name(i)), read(t, want, name(i))) {
			t.Errorf("chunk %d is not compressed as the writer does it", i)
		}
	}
}

// TestCopyRefusesMore: a chunk is one frame, and bytes after it are damage.
func TestCopyRefusesMore(t *testing.T) {
	from, to := new(mem.Bucket), new(mem.Bucket)
	two := append(read(t, filled(t, 0, 1), name(0)), 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0) // and a skippable frame
	write(t, from, name(0), two)
	if report, err := keep.Copy(t.Context(), from, to, keep.CopyOptions{}); err != nil || report.Damaged != 1 || report.Copied.Chunks != 0 {
		t.Errorf("Copy = %+v, %v; want the chunk damaged", report, err)
	}
}

func TestCopyFails(t *testing.T) {
	from := filled(t, 0, 20)
	unavailable := listed{storetest.Faulty(from, storetest.Nth(7), storetest.Fails(store.ErrUnavailable)), from}
	if _, err := keep.Copy(t.Context(), unavailable, new(mem.Bucket), keep.CopyOptions{Workers: 2}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Copy from an unavailable store = %v", err)
	}
	if _, err := keep.Copy(t.Context(), unlisted{from}, new(mem.Bucket), keep.CopyOptions{}); !errors.Is(err, keep.ErrCannotList) {
		t.Errorf("Copy of all without a listing = %v", err)
	}
	if _, err := keep.Copy(t.Context(), listed{from, brokenLister{from}}, new(mem.Bucket), keep.CopyOptions{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Copy with a broken listing = %v", err)
	}
	once := listed{storetest.Faulty(from, storetest.Nth(7), storetest.FlipsBit), from}
	if report, err := keep.Copy(t.Context(), once, new(mem.Bucket), keep.CopyOptions{}); err != nil || report.Bad() > 0 {
		t.Errorf("Copy with damage on the way = %+v, %v", report, err)
	}
}

func TestDistinctBytes(t *testing.T) {
	x := index(t, 0, 10)
	if got, want := keep.DistinctBytes([]*blob.Index{x, x, index(t, 0, 5)}, nil), x.Size()-int64(len(data(0))); got != want {
		t.Errorf("DistinctBytes = %d, want %d", got, want)
	}
	part := index(t, 0, 4)
	if got, want := keep.DistinctBytes([]*blob.Index{x}, []*blob.Index{part, x}), int64(0); got != want {
		t.Errorf("DistinctBytes without those of x = %d, want %d", got, want)
	}
}

// portal answers every request with a login page.
type portal struct{ store.Reader }

func (portal) Read(_ context.Context, _ string, dst []byte, _ int64) ([]byte, error) {
	return append(dst, "<html>log in"...), &store.SuspectError{Err: &store.UnavailableError{Err: errors.New("a web page")}}
}

// TestPortal: a store behind a login form is unavailable, and none of its chunks counts as damaged.
func TestPortal(t *testing.T) {
	o := keep.VerifyOptions{Indexes: []*blob.Index{index(t, 0, 5)}, Workers: 1, Found: func(f keep.Finding) { t.Errorf("found %v", f) }}
	if _, err := keep.Verify(t.Context(), portal{filled(t, 0, 5)}, o); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Verify = %v, want ErrUnavailable", err)
	}
}
