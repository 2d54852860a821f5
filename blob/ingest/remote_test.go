package ingest

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestRemote: with 100 ms per request, an inventory and concurrent uploads make an ingest many times
// faster. It then asks for no chunk.
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

// TestRemoteAsks: without a listing the requests for chunks are concurrent too.
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
		if took := time.Since(begun); took > 4*time.Second { // one at a time it takes 38 s and more
			t.Errorf("256 chunks take %v", took)
		}
	})
}

// TestRelayIsBounded: small chunks do not keep the buffers of earlier large ones.
func TestRelayIsBounded(t *testing.T) {
	const atOnce, large, small = 32, 32 << 20, 1 << 10
	var held atomic.Int64
	wait := make(chan struct{})
	r := newRelay(t.Context(), atOnce, func(_ context.Context, c blob.Chunk, data []byte) error {
		if c.Size == small {
			held.Add(int64(cap(data)))
			<-wait
		}
		return nil
	})
	data := make([]byte, large)
	for n := range int64(8) {
		for _, size := range []int64{large, small} {
			if err := r.relayChunk(t.Context(), blob.Chunk{Size: size}, data[:size]); err != nil {
				t.Error(err)
			}
			if size == large { // wait until it is done
				if err := r.room.Acquire(t.Context(), relayBytes-n*small); err != nil {
					t.Error(err)
				}
				r.room.Release(relayBytes - n*small)
			}
		}
	}
	close(wait)
	if err := r.group.Wait(); err != nil {
		t.Error(err)
	}
	if held.Load() > relayBytes {
		t.Errorf("8 chunks of %d bytes hold %d MiB, want %d at most", small, held.Load()>>20, relayBytes>>20)
	}
}
