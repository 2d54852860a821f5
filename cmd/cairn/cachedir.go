package main

import (
	"cairn/blob"
	"cairn/store"
	"cairn/store/cachedir"
	"cairn/store/supply"
)

// limitFlag is a flag that takes the limit of a cache; 0 is none. Without it the limit is the cache's default.
type limitFlag struct{ value *int64 }

func (f limitFlag) String() string { return "" }
func (f limitFlag) Type() string   { return "size" }

func (f limitFlag) Set(text string) error {
	noteFewBytes(text)
	n, err := parseBytes(text)
	if err == nil && n == 0 {
		n = cachedir.Unlimited
	}
	*f.value = n
	return err
}

// addCache puts a directory of chunks in front of the stores. It is a help, and no condition: one that cannot
// be written, since its disk is full for instance, is still read.
func addCache(from *supply.Supply, dir string, limit int64, a blob.Algorithm) error {
	near := cachedir.Open(dir, cachedir.Options{Limit: limit})
	keep, err := store.NewWriter(near, store.WriterOptions{})
	if err != nil {
		_ = near.Close()
		return err
	}
	failed := func(err error) { say("warning: the cache takes no more chunks for now: %v", err) }
	from.AddCache(store.NewChunks(near, a), keep, failed, func() {
		_ = keep.Close() // what it kept is kept
		_ = near.Close()
	})
	return nil
}
