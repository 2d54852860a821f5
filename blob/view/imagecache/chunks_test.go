package imagecache

import (
	"strings"
	"testing"
)

// TestChunks: what each order of events leaves of a chunk.
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
		{"queued", "pending wanted", func(c *chunks) { c.queue(i) }},
		{"given up", "wanted", func(c *chunks) { c.queue(i); c.unqueue(i) }},
		{"being written", "pending wanted", func(c *chunks) { c.beginWrite(i) }},
		{"written", "present pending wanted", write},
		{"written and read", "present pending wanted", func(c *chunks) { write(c); c.accept(i) }},
		{"flushed", "present proven", func(c *chunks) { write(c); c.endFlush(flush(c)) }},
		{"written beside a flush", "present pending wanted", func(c *chunks) { n := flush(c); write(c); c.endFlush(n) }},
		{"flushed by the next flush", "present proven", func(c *chunks) { flush(c); write(c); c.endFlush(flush(c)) }},
		{"a flush fails", "wanted", func(c *chunks) { write(c); flush(c); c.failFlush() }},
		{"a flush fails beside a write", "wanted", func(c *chunks) { c.beginWrite(i); c.failFlush(); c.endWrite(i) }},
		{"found", "present wanted", find},
		{"found and right", "present proven", func(c *chunks) { find(c); c.accept(i) }},
		{"found and wrong", "wanted", func(c *chunks) { find(c); c.forget(i) }},
		{"forgotten beside a proof", "wanted", func(c *chunks) { find(c); c.forget(i); c.accept(i) }},
		{"written again beside a proof", "pending wanted", func(c *chunks) { find(c); c.beginWrite(i); c.accept(i) }},
		{"unreadable", "", func(c *chunks) { write(c); c.forgetForGood(i, i+1); c.queue(i); write(c) }},
		{"frozen", "", func(c *chunks) { c.freeze(); c.queue(i); write(c) }},
	} {
		c := newChunks(5)
		test.events(c)
		var got []string
		for _, is := range []struct {
			so   bool
			what string
		}{{c.present.Has(i), "present"}, {c.proven.Has(i), "proven"}, {c.pending(i), "pending"}, {c.wants(i), "wanted"}} {
			if is.so {
				got = append(got, is.what)
			}
		}
		if got := strings.Join(got, " "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if c.present.Count() > 1 || c.missing() != 5-c.proven.Count() {
			t.Errorf("%s: %d chunks are present, %d missing", test.name, c.present.Count(), c.missing())
		}
	}
}

// TestReadBesideForget: bytes do not count that were read while a chunk was forgotten, which may have become a hole.
func TestReadBesideForget(t *testing.T) {
	c := newChunks(5)
	for i := range 3 {
		c.present.Add(i)
		c.accept(i)
	}
	if _, ok := c.beginRead(0, 4); ok {
		t.Error("a read of a missing chunk begins")
	}
	mark, ok := c.beginRead(0, 3)
	if !ok || !c.endRead(mark) {
		t.Error("a read of proven chunks does not count")
	}
	c.forget(1)
	if c.endRead(mark) {
		t.Error("a read beside forget counts")
	}
}
