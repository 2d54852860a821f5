package build

import (
	"testing"
	"testing/synctest"
	"time"

	"cairn/store"
	"cairn/store/mem"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestRemote: with 100 ms for each request, a make that lists and overlaps is many times faster than one that
// asks and puts one by one, and sends no question.
func TestRemote(t *testing.T) {
	image, took := testimages.Random(1, 16<<20), map[int]time.Duration{} // 256 chunks
	for _, atOnce := range []int{0, 32} {
		synctest.Test(t, func(t *testing.T) {
			r := &storetest.Remote{Full: new(mem.Bucket), Latency: 100 * time.Millisecond}
			o, begun := store.WriterOptions{Uploads: atOnce}, time.Now()
			if atOnce > 0 {
				v := store.TakeInventory(t.Context(), r, store.InventoryOptions{Chunks: 256})
				defer v.Close()
				o.Known = v
			}
			w, err := store.NewWriter(r, o)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			x, stats := mustBuild(t, source(image), w, Options{Params: fixed, Workers: 2, AtOnce: atOnce})
			took[atOnce] = time.Since(begun)
			checkStored(t, x, r.Full, image)
			if got := r.Counts(); stats.New != 256 || got.Puts != 256 || atOnce > 0 && got.Heads > 0 {
				t.Errorf("%d at once: %d new chunks, and the store is asked %+v", atOnce, stats.New, got)
			}
		})
	}
	t.Logf("256 new chunks at 100 ms a request: %v one by one, %v with 32 at once", took[0], took[32])
	if took[32]*20 > took[0] {
		t.Errorf("32 at once take %v, one by one %v", took[32], took[0])
	}
}

// TestRemoteAsks: where nothing can be listed, the questions overlap too.
func TestRemoteAsks(t *testing.T) {
	image := testimages.Random(1, 16<<20)
	synctest.Test(t, func(t *testing.T) {
		r := &storetest.Remote{Full: new(mem.Bucket), Latency: 100 * time.Millisecond}
		w, err := store.NewWriter(r, store.WriterOptions{Uploads: 32})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		begun := time.Now()
		mustBuild(t, source(image), w, Options{Params: fixed, Workers: 2, AtOnce: 32})
		if took := time.Since(begun); took > 4*time.Second { // one by one it is 38 s and more
			t.Errorf("256 chunks take %v", took)
		}
	})
}
