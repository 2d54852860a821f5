package supply

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/storetest"
)

// wholeOnly is a Reader that reads no parts.
type wholeOnly struct{ store.Reader }

// readFirst reads n bytes of a range and stops.
func readFirst(t *testing.T, r store.Reader, name string, off, length, n int64) error {
	t.Helper()
	return store.StreamRange(t.Context(), r, name, off, length, func(_ store.Part, in io.Reader) error {
		_, err := io.CopyN(io.Discard, in, n)
		return err
	})
}

// TestRateOfRange: at no moment has a range been read faster than the rate and its burst allow, also
// by a reader that reads much at once.
func TestRateOfRange(t *testing.T) {
	const rate, burst, size = 1 << 20, 256 << 10, 4 << 20
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(rate).Limit(objects(t, 1, size))
		begun := time.Now()
		err := store.StreamRange(t.Context(), r, "0", 0, size, func(_ store.Part, in io.Reader) error {
			p, got := make([]byte, 1<<20), 0
			for {
				n, err := in.Read(p)
				got += n
				if most := int(rate*time.Since(begun).Seconds()) + burst; got > most {
					t.Errorf("%d bytes after %v, want at most %d", got, time.Since(begun), most)
				}
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
			}
		})
		took := time.Since(begun)
		if err != nil || took < 3700*time.Millisecond || took > 4300*time.Millisecond {
			t.Errorf("4 MiB at 1 MiB/s took %v, %v; want about 4 s", took, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun = time.Now()
		if _, _, err := storetest.ReadRange(ctx, r, "0", 0, size); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("4 MiB at 1 MiB/s in a second = %v, want the deadline's error", err)
		}
		if took := time.Since(begun); took != time.Second {
			t.Errorf("the read ended after %v, want the deadline", took)
		}
	})
}

// TestBudgetOfRange: a range beyond the budget is not requested. What use does not read is given
// back.
func TestBudgetOfRange(t *testing.T) {
	far := &countedReads{Bucket: objects(t, 2, 100)}
	budget := NewBudget(100)
	r := budget.Limit(far)
	for _, c := range []struct {
		name           string
		off, n         int64
		read, requests int64 // bytes that use reads, and requests for the range
		want           error
		left           int64
	}{
		{"0", 0, 60, 10, 1, nil, 90},
		{"0", 0, 101, 0, 0, ErrBudget, 90}, // the object has more than is left
		{"0", 20, 1 << 40, 10, 1, nil, 80}, // the object ends within what is left
		{"0", 10, 1 << 40, 0, 0, ErrBudget, 80},
		{"absent", 0, 50, 0, 1, store.ErrNotFound, 80},
		{"absent", 0, 500, 0, 0, store.ErrNotFound, 80},
		{"1", 200, 10, 0, 1, store.ErrRange, 80},
		{"1", 10, 80, 80, 1, nil, 0},
		{"1", 0, 1, 0, 0, ErrBudget, 0},
	} {
		far.reads.Store(0)
		if err := readFirst(t, r, c.name, c.off, c.n, c.read); !errors.Is(err, c.want) {
			t.Errorf("reading %+v: %v", c, err)
		}
		if got := far.reads.Load(); got != c.requests {
			t.Errorf("%+v: %d requests", c, got)
		}
		if budget.left != c.left || budget.reading != 0 {
			t.Errorf("%+v: %d bytes are left, %d reads are under way", c, budget.left, budget.reading)
		}
	}
}

// TestBudgetOfRangeEnds: a range of exactly what is left is read to its end.
func TestBudgetOfRangeEnds(t *testing.T) {
	for name, far := range map[string]store.Reader{"range": objects(t, 1, 100), "whole": wholeOnly{objects(t, 1, 100)}} {
		if _, got, err := storetest.ReadRange(t.Context(), NewBudget(100).Limit(far), "0", 0, 100); len(got) != 100 || err != nil {
			t.Errorf("%s: read %d bytes, %v; want 100", name, len(got), err)
		}
	}
}

// TestBudgetOfWholeObject: a store without ranges sends more than the range. Only as much as the
// budget has left is read.
func TestBudgetOfWholeObject(t *testing.T) {
	const size = 200_000
	for _, c := range []struct {
		budget, n, read int64
		want            error
	}{
		{size, 100, size, nil},
		{size - 1, 100, size, ErrBudget},
		{1000, 100, 100, nil},
		{1000, 100, 1000, nil},
		{1000, 100, 1001, ErrBudget},
	} {
		budget := NewBudget(c.budget)
		r := budget.Limit(wholeOnly{objects(t, 1, size)})
		err := readFirst(t, r, "0", 10, c.n, c.read)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
		if want := c.budget - c.read; c.want == nil && budget.left > want || budget.reading != 0 {
			t.Errorf("%+v: %d bytes are left, want at most %d", c, budget.left, want)
		}
	}
}

// TestMeterOfRange: a range counts as one object and as the bytes that were read of it.
func TestMeterOfRange(t *testing.T) {
	for name, far := range map[string]store.Reader{"range": objects(t, 1, 1000), "whole": wholeOnly{objects(t, 1, 1000)}} {
		var c Counter
		r := meter{far, &c}
		if err := readFirst(t, r, "0", 0, 500, 500); err != nil {
			t.Error(err)
		}
		stop := errors.New("stop")
		err := store.StreamRange(t.Context(), r, "0", 100, 500, func(_ store.Part, in io.Reader) error {
			_, err := io.ReadFull(in, make([]byte, 7))
			return errors.Join(err, stop)
		})
		if !errors.Is(err, stop) {
			t.Errorf("%s: %v, want the error of use", name, err)
		}
		if err := readFirst(t, r, "absent", 0, 500, 500); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
		if objects, bytes := c.Objects.Load(), c.Bytes.Load(); objects != 2 || bytes != 507 {
			t.Errorf("%s: counted %d objects, %d bytes; want 2, 507", name, objects, bytes)
		}
	}
}

// TestRangeThroughWrappers: a part arrives unchanged through all wrappers.
func TestRangeThroughWrappers(t *testing.T) {
	b := new(mem.Bucket)
	data := storetest.Bytes(1, 300_000)
	mustWrite(t, b, "x", data)
	limit := (&Options{RateLimit: 1 << 40, Budget: 1 << 40}).newLimiter()
	r := store.Retry(meter{limit(b), new(Counter)}, store.Policy{})
	part, got, err := storetest.ReadRange(t.Context(), r, "x", 1000, 200_000)
	if want := (store.Part{Offset: 1000, Size: 300_000}); part != want || !bytes.Equal(got, data[1000:201_000]) || err != nil {
		t.Errorf("read %d bytes of the part %+v, %v; want %+v", len(got), part, err, want)
	}
}

// TestBeside: the directories beside the stores are opened in the stores' order. They share the
// stores' limits and counts.
func TestBeside(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"a.castr", "a.castr.side", "b.castr", "c.castr", "c.castr.side", "web/store.side"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path, "list"), append([]byte(path), make([]byte, 1000)...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var requests atomic.Int64
	files := http.FileServer(http.Dir(filepath.Join(dir, "web")))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		files.ServeHTTP(w, r)
	}))
	defer server.Close()
	at := func(name string) locate.Location { return locate.Path(filepath.Join(dir, name)) }
	overHTTP, err := locate.Parse(server.URL + "/store")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open([][]locate.Location{{at("a.castr"), at("absent.castr"), overHTTP}, {at("b.castr"), at("c.castr")}},
		locate.Access{}, blob.SHA512_256, Options{Budget: 50})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var asked []string
	readers := s.Beside(func(l locate.Location) (locate.Location, error) {
		asked = append(asked, l.String())
		if l == overHTTP {
			return locate.Parse(server.URL + "/store.side")
		}
		if l == at("c.castr") {
			return locate.Location{}, errors.New("nothing is beside it")
		}
		return locate.Path(l.String() + ".side"), nil
	})
	if len(asked) != 4 || len(readers) != 2 {
		t.Fatalf("Beside derived from %q and returned %v; want 4 locations and 2 readers", asked, readers)
	}
	if n := requests.Load(); n > 0 {
		t.Errorf("Beside sent %d requests, want none", n)
	}
	for i, want := range []string{"a.castr.side", "web/store.side"} {
		part, got, err := storetest.ReadRange(t.Context(), readers[i], "list", 0, int64(len(want)))
		if string(got) != want || part.Whole || err != nil {
			t.Errorf("reader %d: read %q, %v; want %q", i, got, err, want)
		}
	}
	if objects, bytes := s.Downloaded(); objects != 2 || bytes != 26 {
		t.Errorf("Downloaded = %d objects, %d bytes; want 2, 26", objects, bytes)
	}
	if _, _, err := storetest.ReadRange(t.Context(), readers[0], "list", 0, 100); !errors.Is(err, ErrBudget) {
		t.Errorf("reading more than the budget of the supply = %v, want ErrBudget", err)
	}
	if none := New(store.Policy{}, Options{}, failing(store.ErrNotFound)).Beside(nil); none != nil {
		t.Errorf("Beside of a supply without locations = %v, want nil", none)
	}
}
