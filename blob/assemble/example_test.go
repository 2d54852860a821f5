package assemble_test

import (
	"bytes"
	"context"
	"fmt"

	"cairn/blob/assemble"
	"cairn/blob/ingest"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/seed"
	"cairn/store"
)

// flash is a program's own device. Any type with these four methods is a Target.
type flash struct{ cells []byte }

func (f *flash) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.cells).ReadAt(p, off)
}
func (f *flash) WriteAt(p []byte, off int64) (int, error) { return copy(f.cells[off:], p), nil }
func (f *flash) Zero(off, n int64) error                  { clear(f.cells[off : off+n]); return nil }
func (f *flash) Sync() error                              { return nil }

// A device is updated from release 1, which is in the other slot, to release 2, whose new chunks are in
// a store.
func Example() {
	ctx := context.Background()
	release1 := bytes.Repeat([]byte("the system, "), 100_000)
	release2 := append(bytes.Clone(release1), "and what is new in it"...)

	// On the build host: cut release 2 into a store.
	var bucket mem.Bucket
	w, err := store.NewWriter(&bucket, store.WriterOptions{})
	if err != nil {
		panic(err)
	}
	defer w.Close()
	index, _, err := ingest.Image(ctx, chunker.FromReader(bytes.NewReader(release2)), w, ingest.Options{Params: chunker.Default})
	if err != nil {
		panic(err)
	}

	// On the device: scan the running slot, cut in the same way.
	o := scan.Like(index)
	held, _, err := scan.Image(ctx, chunker.FromReader(bytes.NewReader(release1)), o)
	if err != nil {
		panic(err)
	}
	plan := seed.NewPlan(index, seed.Seed{Name: "slot A", Index: held, Data: bytes.NewReader(release1)})

	target := &flash{cells: make([]byte, len(release2)+4096)}
	var last assemble.Stats
	stats, err := assemble.Run(ctx, plan, store.NewChunks(&bucket, index.Algorithm()), target, assemble.Options{
		Progress: func(s assemble.Stats) { last = s },
	})
	if err != nil {
		panic(err)
	}
	fmt.Println("whole:", bytes.Equal(target.cells[:len(release2)], release2))
	fmt.Println("all told:", last.Done == stats.Size)
	fmt.Println("from slot A:", stats.Seeds[0] > 0)
	fmt.Println("downloaded:", stats.Fetched > 0)
	// Output:
	// whole: true
	// all told: true
	// from slot A: true
	// downloaded: true
}

var _ assemble.Target = (*flash)(nil)
