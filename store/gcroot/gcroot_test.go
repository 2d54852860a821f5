package gcroot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/testimages"
)

func indexOf(t testing.TB, seed uint64) *blob.Index {
	t.Helper()
	image := testimages.Random(seed, 300<<10)
	x, _, err := scan.Image(t.Context(), chunker.FromReaderAt(bytes.NewReader(image), int64(len(image))),
		scan.Options{Params: chunker.Default, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func open(t *testing.T, b store.Bucket, o gcroot.Options) *gcroot.Dir {
	t.Helper()
	d, err := gcroot.Open(b, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRoots(t *testing.T) {
	d := open(t, new(mem.Bucket), gcroot.Options{})
	x, published := indexOf(t, 1), time.Unix(1700000000, 123)
	var entries []gcroot.Entry
	for _, name := range []string{"v1.caibx", "über/v1.caibx", strings.Repeat("n", 4096)} {
		e, err := d.Write(t.Context(), &gcroot.Root{Name: name, Published: published, Index: x}, 7)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
		for _, headOnly := range []bool{false, true} {
			r, err := d.Read(t.Context(), e, headOnly)
			if err != nil || r.Name != name || !r.Published.Equal(published) || r.Digest != x.Digest() {
				t.Fatalf("Read = %+v, %v", r, err)
			}
			if !headOnly && r.Index.Digest() != x.Digest() {
				t.Error("another index is read")
			}
		}
	}
	for _, name := range []string{"", "\xff", "a\x00b", strings.Repeat("n", 4097)} {
		if _, err := d.Write(t.Context(), &gcroot.Root{Name: name, Index: x}, 7); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("a gc root with the name %.20q: %v", name, err)
		}
	}
	if err := d.Retire(t.Context(), entries[1]); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), entries[2]); err != nil {
		t.Fatal(err)
	}
	l, err := d.List(t.Context())
	if err != nil || len(l.Roots) != 2 || l.Managed || len(l.Others) > 0 {
		t.Fatalf("List = %+v, %v", l, err)
	}
	for _, e := range l.Roots {
		if retired := !e.Retired.IsZero(); retired != (e.Name == entries[1].Name) || e.Index != x.Digest() || e.Number != 7 {
			t.Errorf("listed: %+v", e)
		}
	}
	if next := l.Next(); next != 8 {
		t.Errorf("the next number is %d", next)
	}
	if err := d.Remove(t.Context(), entries[1]); err != nil {
		t.Fatal(err)
	}
	if l, err := d.List(t.Context()); err != nil || len(l.Roots) != 1 || len(l.Others) > 0 {
		t.Errorf("after the removal: %+v, %v", l, err)
	}
}

func TestManaged(t *testing.T) {
	b := new(mem.Bucket)
	d := open(t, b, gcroot.Options{})
	if managed, err := d.IsManaged(t.Context()); managed || err != nil {
		t.Errorf("an empty directory: %v, %v", managed, err)
	}
	if err := d.Manage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if managed, err := d.IsManaged(t.Context()); !managed || err != nil {
		t.Errorf("after Manage: %v, %v", managed, err)
	}
	for _, other := range []string{"cairn gc 2\n", "cairn gc 1\nand more", ""} {
		if err := b.Write(t.Context(), "config", []byte(other)); err != nil {
			t.Fatal(err)
		}
		if managed, err := d.IsManaged(t.Context()); managed || !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("config %q: %v, %v", other, managed, err)
		}
		if l, err := d.List(t.Context()); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("config %q: List = %+v, %v", other, l, err)
		}
		if _, err := d.Lease(t.Context()); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("config %q: a lease: %v", other, err)
		}
		if _, err := d.Turn(t.Context(), 0); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("config %q: a turn: %v", other, err)
		}
	}
}

// TestDamagedRoot checks that each changed, missing or further byte of a gc root is noticed.
func TestDamagedRoot(t *testing.T) {
	data, err := (&gcroot.Root{Name: "v1.caibx", Index: indexOf(t, 1)}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	withMap := &gcroot.Root{Name: "v1.caibx", Index: indexOf(t, 1), Map: []byte("the map")}
	mapped, err := withMap.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := gcroot.Decode(bytes.NewReader(mapped), false); err != nil || !bytes.Equal(r.Map, withMap.Map) {
		t.Errorf("with a map: %v", err)
	}
	for i := range withMap.Map {
		if _, err := gcroot.Decode(bytes.NewReader(mapped[:len(mapped)-1-i]), false); !errors.Is(err, gcroot.ErrInvalid) {
			t.Errorf("without the last %d bytes of the map: %v", i+1, err)
		}
	}
	decode := func(data []byte) error {
		_, err := gcroot.Decode(bytes.NewReader(data), false)
		return err
	}
	if err := decode(data); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		changed := bytes.Clone(data)
		changed[i] ^= 0x20
		if err := decode(changed); !errors.Is(err, gcroot.ErrInvalid) {
			t.Fatalf("byte %d is changed: %v", i, err)
		}
		if err := decode(data[:i]); !errors.Is(err, gcroot.ErrInvalid) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
	if err := decode(append(data, 0)); !errors.Is(err, gcroot.ErrInvalid) {
		t.Errorf("with a further byte: %v", err)
	}
	b := new(mem.Bucket)
	d := open(t, tooLarge{b}, gcroot.Options{})
	e, err := d.Write(t.Context(), withMap, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(t.Context(), e, false); !errors.Is(err, gcroot.ErrInvalid) {
		t.Errorf("one that is too large: %v", err)
	}
	failed := errors.New("failed")
	if _, err := gcroot.Decode(io.MultiReader(bytes.NewReader(data[:200]), failing{failed}), false); !errors.Is(err, failed) || errors.Is(err, gcroot.ErrInvalid) {
		t.Errorf("a failed read: %v", err)
	}
}

// tooLarge is a bucket whose objects are larger than any limit.
type tooLarge struct{ *mem.Bucket }

func (tooLarge) Read(context.Context, string, []byte, int64) ([]byte, error) {
	return nil, store.ErrTooLarge
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzDecode(f *testing.F) {
	data, err := (&gcroot.Root{Name: "v1.caibx", Index: indexOf(f, 1)}).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:100])
	if data, err = (&gcroot.Root{Name: "v2.caibx", Index: indexOf(f, 2), Map: []byte("map")}).Encode(); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := gcroot.Decode(bytes.NewReader(data), false)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("decoded and encoded again it differs (%v)", err)
		}
	})
}

// TestTurns checks that a collector waits for a publisher, and a publisher for a collector.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var waits []string
		d := open(t, new(mem.Bucket), gcroot.Options{Waiting: func(others string) { waits = append(waits, others) }})
		lease, err := d.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := d.Turn(t.Context(), time.Minute); !errors.Is(err, gcroot.ErrBusy) {
			t.Fatalf("a turn beside a lease: %v", err)
		}
		if took := time.Since(begun); took < time.Minute || took > 2*time.Minute {
			t.Errorf("it gave up after %v", took)
		}
		go func() {
			time.Sleep(3 * time.Hour) // a lease is renewed
			if err := lease.Check(t.Context()); err != nil {
				t.Errorf("after hours, the lease is not in force: %v", err)
			}
			if err := lease.End(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		turn, err := d.Turn(t.Context(), 24*time.Hour)
		if err != nil || time.Since(begun) < 3*time.Hour {
			t.Fatalf("a turn after %v: %v", time.Since(begun), err)
		}
		ended := make(chan time.Time, 1)
		go func() {
			lease, err := d.Lease(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			at := time.Now()
			if err := lease.End(t.Context()); err != nil {
				t.Error(err)
			}
			ended <- at
		}()
		time.Sleep(2 * time.Hour)
		done := time.Now()
		if err := turn.Do(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Errorf("after hours, the turn is not in force: %v", err)
		}
		if err := turn.End(t.Context()); err != nil {
			t.Error(err)
		}
		if at := <-ended; at.Before(done) {
			t.Errorf("a publisher began during the turn, %v before its end", done.Sub(at))
		}
		l, err := d.List(t.Context())
		if err != nil || l.Leases+l.Turns > 0 || len(l.Others) > 0 {
			t.Errorf("at the end: %+v, %v", l, err)
		}
		if len(waits) != 3 || !strings.Contains(waits[0], "publishers are at work: ") || !strings.Contains(waits[2], "gc removes chunks: ") {
			t.Errorf("messages: %q", waits)
		}
	})
}

// TestExpiry checks that others end the announcements of dead processes, and that a process that was only stopped
// notices it.
func TestExpiry(t *testing.T) {
	for name, owner := range map[string]string{
		"of this machine, ended":  "", // filled in below
		"of another machine":      `{"host":"far","boot":"other","namespace":"pid:[1]","pid":1,"started":"1","command":"cairn"}`,
		"of unknown form":         "?",
		"of this machine, number": `{"pid":-1}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := new(mem.Bucket)
				d := open(t, b, gcroot.Options{})
				if owner == "" {
					owner = string(gcroot.EndedProcess())
				}
				if err := b.Write(t.Context(), "leases/dead.0", []byte(owner)); err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				turn, err := d.Turn(t.Context(), time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				took, atOnce := time.Since(begun), name == "of this machine, ended"
				if atOnce && took > time.Second || !atOnce && (took < 10*time.Minute || took > 15*time.Minute) {
					t.Errorf("the lease was in force for %v", took)
				}
				if err := turn.End(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// setBack is a bucket whose clock was set back after some objects were written.
type setBack struct {
	*mem.Bucket
	names []string
	by    time.Duration
}

func (b *setBack) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for o, err := range b.Bucket.List(ctx, prefix) {
			if slices.Contains(b.names, o.Name) {
				o.Modified = o.Modified.Add(b.by)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

// TestClockSetBack checks that announcements from the future expire. Their owners would write new ones.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &setBack{new(mem.Bucket), []string{"leases/dead.0", "turns/dead.0"}, 20 * 365 * 24 * time.Hour}
		d := open(t, b, gcroot.Options{})
		for _, name := range b.names {
			if err := b.Write(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}
		}
		turn, err := d.Turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := turn.End(t.Context()); err != nil {
			t.Error(err)
		}
		lease, err := d.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.End(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// full is a bucket without room for bytes.
type full struct{ *mem.Bucket }

func (b full) Write(ctx context.Context, name string, data []byte) error {
	if len(data) > 0 {
		return fmt.Errorf("writing %s: %w", name, unix.ENOSPC)
	}
	return b.Bucket.Write(ctx, name, data)
}

// TestFullDisk checks that a collector, which makes room, needs no room for bytes.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, full{new(mem.Bucket)}, gcroot.Options{})
		turn, err := d.Turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // with renewals
		if err := turn.Do(t.Context(), func(ctx context.Context) error { return ctx.Err() }); err != nil {
			t.Error(err)
		}
		if err := turn.End(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestLapsed checks that an announcement that another process has removed is not in force, even if it is renewed.
func TestLapsed(t *testing.T) {
	for _, later := range []time.Duration{0, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			b := new(mem.Bucket)
			d := open(t, b, gcroot.Options{})
			lease, err := d.Lease(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			removeAll(t, b, "leases/")
			time.Sleep(later)
			if err := lease.Check(t.Context()); !errors.Is(err, gcroot.ErrLapsed) {
				t.Errorf("a removed lease: %v", err)
			}
			if err := lease.End(t.Context()); err != nil {
				t.Error(err)
			}
			turn, err := d.Turn(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			removeAll(t, b, "turns/")
			time.Sleep(later + 31*time.Second)
			err = turn.Do(t.Context(), func(context.Context) error { t.Error("a removal in a removed turn"); return nil })
			if !errors.Is(err, gcroot.ErrLapsed) {
				t.Errorf("a removed turn: %v", err)
			}
			if err := turn.End(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func removeAll(t *testing.T, b *mem.Bucket, prefix string) {
	t.Helper()
	for o, err := range b.List(t.Context(), prefix) {
		if err == nil {
			err = b.Remove(t.Context(), o.Name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemovalEndsInTime checks that the requests of a turn end before it could expire.
func TestRemovalEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, new(mem.Bucket), gcroot.Options{})
		turn, err := d.Turn(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		err = turn.Do(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 30*time.Second {
			t.Errorf("a silent store: %v after %v", err, took)
		}
		if err := turn.End(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestCancelled checks that an announcement is withdrawn when its job is cancelled.
func TestCancelled(t *testing.T) {
	b := new(mem.Bucket)
	d := open(t, b, gcroot.Options{Pause: func(ctx context.Context) error { return store.Sleep(ctx, time.Millisecond) }})
	ctx, cancel := context.WithCancel(t.Context())
	lease, err := d.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	waiting, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := d.Turn(waiting, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled Turn: %v", err)
	}
	cancel()
	if err := lease.End(ctx); err != nil {
		t.Error(err)
	}
	if l, err := d.List(t.Context()); err != nil || l.Leases+l.Turns > 0 {
		t.Errorf("left: %+v, %v", l, err)
	}
}

func TestUnsupported(t *testing.T) {
	b := struct{ store.Bucket }{new(mem.Bucket)}
	if _, err := gcroot.Open(b, gcroot.Options{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a bucket that lists nothing: %v", err)
	}
	if _, err := gcroot.OpenReader(b); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a reader that lists nothing: %v", err)
	}
}
