package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store"
)

// TestBucket checks the contract of store.Bucket, and of the batches that store.NewBatch makes on
// it. Each call of open returns an empty bucket.
func TestBucket(t *testing.T, open func(t *testing.T) store.Bucket) {
	Test(t, func(t *testing.T) (store.Reader, Put) {
		b := open(t)
		return b, func(name string, data []byte) { mustWrite(t, b, name, data) }
	})
	tests := map[string]func(*testing.T, store.Bucket){
		"replace":           testReplace,
		"write bad names":   testWriteBadNames,
		"write cancelled":   testWriteCancelled,
		"write copies":      testWriteCopies,
		"write concurrent":  testWriteConcurrent,
		"batch":             testBatch,
		"batch close":       testBatchClose,
		"batch cancelled":   testBatchCancelled,
		"batch concurrent":  testBatchConcurrent,
		"batch bad names":   testBatchBadNames,
		"batch after batch": testBatchAfterBatch,
		"list":              testList,
		"list cancelled":    testListCancelled,
		"create":            testCreate,
		"create concurrent": testCreateConcurrent,
		"remove":            testRemove,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func mustWrite(t *testing.T, b interface {
	Write(context.Context, string, []byte) error
}, name string, data []byte) {
	t.Helper()
	if err := b.Write(t.Context(), name, data); err != nil {
		t.Fatalf("Write(%s): %v", name, err)
	}
}

func mustBatch(t *testing.T, b store.Bucket) store.Batch {
	t.Helper()
	batch, err := store.NewBatch(b)
	if err != nil {
		t.Fatalf("NewBatch: %v", err)
	}
	return batch
}

func mustCommit(t *testing.T, batch store.Batch) {
	t.Helper()
	if err := batch.Commit(t.Context()); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func mustClose(t *testing.T, batch store.Batch) {
	t.Helper()
	if err := batch.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

func testReplace(t *testing.T, b store.Bucket) {
	for _, data := range [][]byte{[]byte("first"), []byte("the second is longer"), []byte("3rd"), nil} {
		mustWrite(t, b, "dir/x", data)
		checkRead(t, b, "dir/x", data)
	}
}

func testWriteBadNames(t *testing.T, b store.Bucket) {
	for _, name := range []string{"", ".", "/x", "../x", "a/../../x", "a//x", "x\x00"} {
		if b.Write(t.Context(), name, []byte("x")) == nil {
			t.Errorf("Write(%q) succeeded", name)
		}
	}
}

func testWriteCancelled(t *testing.T, b store.Bucket) {
	mustWrite(t, b, "old", []byte("old"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"old", "new"} {
		if err := b.Write(ctx, name, []byte("new")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled Write = %v, want context.Canceled", err)
		}
	}
	checkRead(t, b, "old", []byte("old"))
	_, err := b.Stat(t.Context(), "new")
	checkAbsent(t, "Stat", "new", err)
}

func testWriteCopies(t *testing.T, b store.Bucket) {
	data := []byte("data")
	mustWrite(t, b, "x", data)
	data[0] = 'X'
	checkRead(t, b, "x", []byte("data"))
}

// testWriteConcurrent reads and writes one object concurrently: each read returns one complete
// version.
func testWriteConcurrent(t *testing.T, b store.Bucket) {
	versions := [][]byte{Bytes(1, 50_000), Bytes(2, 60_000)}
	mustWrite(t, b, "dir/x", versions[0])
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := b.Write(t.Context(), "dir/x", versions[i%2]); err != nil {
				t.Errorf("Write: %v", err)
			}
		})
		wg.Go(func() {
			got, err := b.Read(t.Context(), "dir/x", nil, noLimit)
			if err != nil || !bytes.Equal(got, versions[0]) && !bytes.Equal(got, versions[1]) {
				t.Errorf("Read beside writers = %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func testBatch(t *testing.T, b store.Bucket) {
	batch := mustBatch(t, b)
	mustCommit(t, batch)
	for round := range 2 {
		for i := range 5 {
			data := []byte(fmt.Sprint("round ", round, " object ", i))
			mustWrite(t, batch, fmt.Sprintf("%d/a %%2F/x%d", round, i), data)
			clear(data) // the caller may reuse data
		}
		mustWrite(t, batch, "both", []byte("half of the first"))
		mustWrite(t, batch, "both", fmt.Append(nil, round))
		mustCommit(t, batch)
		checkRead(t, b, fmt.Sprintf("%d/a %%2F/x3", round), fmt.Append(nil, "round ", round, " object 3"))
		checkRead(t, b, "both", fmt.Append(nil, round))
	}
	mustClose(t, batch)
	checkRead(t, b, "0/a %2F/x4", []byte("round 0 object 4"))
}

// testBatchClose checks that an uncommitted object is either complete or absent.
func testBatchClose(t *testing.T, b store.Bucket) {
	batch := mustBatch(t, b)
	mustWrite(t, batch, "dir/x", []byte("data"))
	mustClose(t, batch)
	if _, err := b.Stat(t.Context(), "dir/x"); err == nil {
		checkRead(t, b, "dir/x", []byte("data"))
	} else {
		checkAbsent(t, "Stat", "dir/x", err)
	}
}

func testBatchCancelled(t *testing.T, b store.Bucket) {
	batch := mustBatch(t, b)
	defer mustClose(t, batch)
	mustWrite(t, batch, "x", []byte("data"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := batch.Write(ctx, "y", []byte("data")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Write = %v, want context.Canceled", err)
	}
	if err := batch.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Commit = %v, want context.Canceled", err)
	}
	mustCommit(t, batch)
	checkRead(t, b, "x", []byte("data"))
	_, err := b.Stat(t.Context(), "y")
	checkAbsent(t, "Stat", "y", err)
}

// testBatchConcurrent writes the same names in several batches, with many writers each.
func testBatchConcurrent(t *testing.T, b store.Bucket) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { writeBatch(t, b) })
	}
	wg.Wait()
	for i := range 50 {
		checkRead(t, b, fmt.Sprintf("%02d/x", i), Bytes(uint64(i), 2000))
	}
}

func writeBatch(t *testing.T, b store.Bucket) {
	batch, err := store.NewBatch(b)
	if err != nil {
		t.Errorf("NewBatch: %v", err)
		return
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if err := batch.Write(t.Context(), fmt.Sprintf("%02d/x", i), Bytes(uint64(i), 2000)); err != nil {
				t.Errorf("Write: %v", err)
			}
			if i%20 == 0 {
				if err := batch.Commit(t.Context()); err != nil {
					t.Errorf("Commit beside writers: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
		t.Errorf("Commit and Close: %v", err)
	}
}

func testBatchBadNames(t *testing.T, b store.Bucket) {
	batch := mustBatch(t, b)
	defer mustClose(t, batch)
	for _, name := range []string{"", "..", "/x", "../x", "x\x00"} {
		if batch.Write(t.Context(), name, []byte("x")) == nil {
			t.Errorf("Write(%q) succeeded", name)
		}
	}
	mustCommit(t, batch)
}

func testBatchAfterBatch(t *testing.T, b store.Bucket) {
	for _, data := range []string{"one", "two"} {
		batch := mustBatch(t, b)
		mustWrite(t, batch, "dir/x", []byte(data))
		mustCommit(t, batch)
		mustClose(t, batch)
		checkRead(t, b, "dir/x", []byte(data))
	}
}

// testList checks store.Lister if the bucket implements it.
func testList(t *testing.T, b store.Bucket) {
	lister, ok := b.(store.Lister)
	if !ok {
		t.Skip("it lists nothing")
	}
	checkList(t, lister, "", nil)
	sizes := map[string]int64{}
	for i, name := range []string{
		"abcd/abcdef.cacnk", "abcd/abce", "abce/x", "ab/y", "top", "tip", "a space/percent%2F", "d/e/e/p", "top.d/below",
	} {
		mustWrite(t, b, name, Bytes(1, i))
		sizes[name] = int64(i)
	}
	for _, prefix := range []string{"", "a", "ab", "ab/", "abc", "abcd", "abcd/", "abcd/abcd", "abcd/abce", "top", "d/e", "d/e/", "zz", "zz/z", "a space/percent%"} {
		checkList(t, lister, prefix, sizes)
	}
	for object, err := range lister.List(t.Context(), "a") { // the caller may stop a listing
		if err != nil || object.Name == "" {
			t.Errorf("List yields %q, %v", object.Name, err)
		}
		break
	}
	testListTimes(t, b, lister)
}

// testListTimes checks that a later write gives a later time, by the clock of the store. Clocks of stores count
// seconds.
func testListTimes(t *testing.T, b store.Bucket, lister store.Lister) {
	modified := func(name string) (at time.Time) {
		for object, err := range lister.List(t.Context(), name) {
			if err != nil {
				t.Fatal(err)
			}
			at = object.Modified
		}
		return at
	}
	mustWrite(t, b, "times/first", Bytes(1, 1))
	first := modified("times/first")
	if first.IsZero() {
		t.Fatal("List yields no time of an object")
	}
	time.Sleep(1100 * time.Millisecond)
	mustWrite(t, b, "times/second", Bytes(1, 1))
	if second := modified("times/second"); !second.After(first) {
		t.Errorf("an object of %v was written after one of %v", second, first)
	}
	mustWrite(t, b, "times/first", Bytes(2, 1))
	if again := modified("times/first"); !again.After(first) {
		t.Errorf("an object of %v is of %v after it was written again", first, again)
	}
}

// checkList compares a listing with the objects that have the prefix.
func checkList(t *testing.T, l store.Lister, prefix string, sizes map[string]int64) {
	t.Helper()
	want := map[string]int64{}
	for name, size := range sizes {
		if strings.HasPrefix(name, prefix) {
			want[name] = size
		}
	}
	for object, err := range l.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List(%q): %v", prefix, err)
		}
		size, ok := want[object.Name]
		if !ok || size != object.Size {
			t.Errorf("List(%q) yields %q of %d bytes, which was not put so, or was yielded before", prefix, object.Name, object.Size)
		}
		delete(want, object.Name)
	}
	if len(want) > 0 {
		t.Errorf("List(%q) lacks %v", prefix, slices.Sorted(maps.Keys(want)))
	}
}

func testListCancelled(t *testing.T, b store.Bucket) {
	lister, ok := b.(store.Lister)
	if !ok {
		t.Skip("it lists nothing")
	}
	mustWrite(t, b, "abcd/x", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var last error
	for _, last = range lister.List(ctx, "") {
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("cancelled List ends with %v, want context.Canceled", last)
	}
}

// testCreate checks store.Creator if the bucket implements it.
func testCreate(t *testing.T, b store.Bucket) {
	creator, ok := b.(store.Creator)
	if !ok {
		t.Skip("it creates nothing")
	}
	if checker, can := b.(store.CreateChecker); can {
		if err := checker.CheckCreate(t.Context()); err != nil {
			t.Errorf("CheckCreate = %v", err)
		}
		if lister, can := b.(store.Lister); can {
			checkList(t, lister, "", nil)
		}
	}
	if err := creator.Create(t.Context(), "dir/x", []byte("first")); err != nil {
		t.Fatalf("Create: %v", err)
	}
	if err := creator.Create(t.Context(), "dir/x", []byte("second")); !errors.Is(err, store.ErrExists) {
		t.Errorf("Create of an existing object = %v, want ErrExists", err)
	}
	checkRead(t, b, "dir/x", []byte("first"))
}

// testCreateConcurrent creates one object concurrently: one call succeeds, and the object has its
// bytes.
func testCreateConcurrent(t *testing.T, b store.Bucket) {
	creator, ok := b.(store.Creator)
	if !ok {
		t.Skip("it creates nothing")
	}
	var wg sync.WaitGroup
	var made atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			err := creator.Create(t.Context(), "x", Bytes(uint64(i), 1000))
			switch {
			case err == nil && !made.CompareAndSwap(0, int64(i)+1):
				t.Error("two Creates of one name succeeded")
			case err != nil && !errors.Is(err, store.ErrExists):
				t.Errorf("Create beside others = %v, want ErrExists", err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n > 0 {
		checkRead(t, b, "x", Bytes(uint64(n)-1, 1000))
	} else {
		t.Error("no Create succeeded")
	}
}

// testRemove checks store.Remover if the bucket implements it.
func testRemove(t *testing.T, b store.Bucket) {
	remover, ok := b.(store.Remover)
	if !ok {
		t.Skip("it removes nothing")
	}
	mustWrite(t, b, "dir/x", []byte("x"))
	mustWrite(t, b, "dir/y", []byte("y"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := remover.Remove(ctx, "dir/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Remove = %v, want context.Canceled", err)
	}
	checkRead(t, b, "dir/x", []byte("x"))
	if err := remover.Remove(t.Context(), "dir/x"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	for _, name := range []string{"dir/x", "dir/absent", "absent/x"} {
		checkAbsent(t, "Remove", name, remover.Remove(t.Context(), name))
	}
	for _, name := range []string{"", "..", "/x", "dir/../dir/y"} {
		if err := remover.Remove(t.Context(), name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Remove(%q) = %v, want a refusal", name, err)
		}
	}
	checkRead(t, b, "dir/y", []byte("y"))
	mustWrite(t, b, "dir/x", []byte("again"))
	checkRead(t, b, "dir/x", []byte("again"))
	testSweep(t, b, remover)
}

// testSweep checks store.Sweep, with names that need escapes and with absent ones.
func testSweep(t *testing.T, b store.Bucket, remover store.Remover) {
	names := []string{"dir/x", "dir/absent", "absent/x", "sweep/a&b", "sweep/<c>", "sweep/d e%2F+", "top"}
	for _, name := range names {
		if !strings.Contains(name, "absent") {
			mustWrite(t, b, name, []byte("x"))
		}
	}
	mustWrite(t, b, "sweep/stays", []byte("y"))
	for range 2 {
		if err := store.Sweep(t.Context(), remover, names); err != nil {
			t.Fatalf("Sweep: %v", err)
		}
		for _, name := range names {
			_, err := b.Stat(t.Context(), name)
			checkAbsent(t, "Stat after Sweep", name, err)
		}
	}
	checkRead(t, b, "sweep/stays", []byte("y"))
	if err := store.Sweep(t.Context(), remover, []string{"../y"}); err == nil {
		t.Error("Sweep removes a name outside the bucket")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Sweep(ctx, remover, []string{"sweep/stays"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Sweep = %v, want context.Canceled", err)
	}
	checkRead(t, b, "sweep/stays", []byte("y"))
}
