package deploy_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"cairn/blob/deploy"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/seed/learn"
	"cairn/store"
)

// A program updates a file to release 2, with release 1 as a seed. A partition such as
// "PARTLABEL=root-b" is a target in the same way.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "deploy")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	release1 := bytes.Repeat([]byte("the system, "), 100_000)
	release2 := append(bytes.Clone(release1), "and what is new in it"...)
	seed := filepath.Join(dir, "release1.img")
	if err := os.WriteFile(seed, release1, 0o644); err != nil {
		panic(err)
	}
	var bucket mem.Bucket // any store.Bucket
	w, err := store.NewWriter(&bucket, store.WriterOptions{})
	if err != nil {
		panic(err)
	}
	defer w.Close()
	index, _, err := ingest.Image(ctx, chunker.FromReader(bytes.NewReader(release2)), w, ingest.Options{Params: chunker.Default})
	if err != nil {
		panic(err)
	}

	o := deploy.Options{Seeds: []learn.Place{{Path: seed}}, Releases: release.Access{}}
	target, err := deploy.Claim(ctx, filepath.Join(dir, "release2.img"), index, o)
	if err != nil {
		panic(err)
	}
	defer target.Close()
	plan, err := deploy.NewPlan(ctx, index, target, o)
	if err != nil {
		panic(err)
	}
	defer plan.Close()
	stats, err := plan.Run(ctx, store.NewChunks(&bucket, index.Algorithm()), nil)
	if err != nil {
		panic(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "release2.img"))
	fmt.Println("whole:", err == nil && bytes.Equal(got, release2))
	fmt.Println("some from the seed:", stats.Seeds[0] > 0)
	// Output:
	// whole: true
	// some from the seed: true
}
