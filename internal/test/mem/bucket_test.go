package mem_test

import (
	"testing"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

func TestBucket(t *testing.T) {
	storetest.TestBucket(t, func(*testing.T) store.Bucket { return new(mem.Bucket) })
}
