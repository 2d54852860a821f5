package main

import (
	"cairn/blob"
	"cairn/store"
	"cairn/store/cachedir"
	"cairn/store/supply"
)

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
