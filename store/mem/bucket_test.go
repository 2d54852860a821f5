package mem_test

import (
	"testing"

	"cairn/store"
	"cairn/store/mem"
	"cairn/store/storetest"
)

func TestBucket(t *testing.T) {
	storetest.TestBucket(t, func(*testing.T) store.Bucket { return new(mem.Bucket) })
}
