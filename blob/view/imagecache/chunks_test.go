package imagecache

import (
	"strings"
	"testing"
)

// TestChunks checks the state of a chunk after several sequences of events.
func TestChunks(t *testing.T) {
	const i = 3
	write := func(c *chunks) { c.beginWrite(i); c.endWrite(i) }
	find := func(c *chunks) { c.present.Add(i) }
	flush := func(c *chunks) uint64 { c.setDirty(); number, _, _ := c.beginFlush(); return number }
	for _, test := range []struct {
		name   string
		want   string
		events func(c *chunks)
	}{
		{"new", "wanted", func(*chunks) {}},
		{"queued", "pending wanted", func(c *chunks) { c.markQueued(i) }},
		{"dropped", "wanted", func(c *chunks) { c.markQueued(i); c.clearQueued(i) }},
		{"being written", "pending wanted", func(c *chunks) { c.beginWrite(i) }},
		{"written", "present pending wanted", write},
		{"written and read", "present pending wanted", func(c *chunks) { write(c); c.markProven(i) }},
		{"flushed", "present proven", func(c *chunks) { write(c); c.endFlush(flush(c)) }},
		{"written during a flush", "present pending wanted", func(c *chunks) { n := flush(c); write(c); c.endFlush(n) }},
		{"flushed by the next flush", "present proven", func(c *chunks) { flush(c); write(c); c.endFlush(flush(c)) }},
		{"a flush fails", "wanted", func(c *chunks) { write(c); flush(c); c.failFlush() }},
		{"a flush fails during a write", "wanted", func(c *chunks) { c.beginWrite(i); c.failFlush(); c.endWrite(i) }},
		{"found", "present wanted", find},
		{"found and valid", "present proven", func(c *chunks) { find(c); c.markProven(i) }},
		{"found and invalid", "wanted", func(c *chunks) { find(c); c.markMissing(i) }},
		{"marked missing during a verification", "wanted", func(c *chunks) { find(c); c.markMissing(i); c.markProven(i) }},
		{"written again during a verification", "pending wanted", func(c *chunks) { find(c); c.beginWrite(i); c.markProven(i) }},
		{"unreadable", "", func(c *chunks) { write(c); c.markBroken(i, i+1); c.markQueued(i); write(c) }},
		{"frozen", "", func(c *chunks) { c.freezeWrites(); c.markQueued(i); write(c) }},
	} {
		c := newChunks(5)
		test.events(c)
		var got []string
		for _, is := range []struct {
			so   bool
			what string
		}{{c.present.Has(i), "present"}, {c.proven.Has(i), "proven"}, {c.isPending(i), "pending"}, {c.isWritable(i), "wanted"}} {
			if is.so {
				got = append(got, is.what)
			}
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if c.present.Count() > 1 || c.countMissing() != 5-c.proven.Count() {
			t.Errorf("%s: %d chunks are present, %d missing", test.name, c.present.Count(), c.countMissing())
		}
	}
}

// TestReadBesideRemoval checks that a read is invalid if a chunk became missing during it, since it may have become a
// hole.
func TestReadBesideRemoval(t *testing.T) {
	c := newChunks(5)
	for i := range 3 {
		c.present.Add(i)
		c.markProven(i)
	}
	if _, ok := c.beginRead(0, 4); ok {
		t.Error("beginRead succeeds for a missing chunk")
	}
	mark, ok := c.beginRead(0, 3)
	if !ok || !c.endRead(mark) {
		t.Error("a read of proven chunks is invalid")
	}
	c.markMissing(1)
	if c.endRead(mark) {
		t.Error("a read during markMissing is valid")
	}
}
