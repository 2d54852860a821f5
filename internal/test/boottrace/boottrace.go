// Package boottrace records the reads of a booting machine and replays them: the reads, the times between them,
// and the answers that each read waited for. So a test can measure repeatedly how long a boot waits for its
// disk, without a machine and its noise. It is for tests.
package boottrace

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	_ "embed" // the recorded traces
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"time"
)

// Read is a read of a machine.
type Read struct {
	Offset int64
	Length int64
	After  int           // the number of the read after whose answer it was sent; -1 for none
	Think  time.Duration // the time since that answer, or since the beginning
}

// Trace holds the reads of a boot in the order of their starts.
type Trace struct{ Reads []Read }

// Bytes returns the sum of the lengths.
func (t *Trace) Bytes() (n int64) {
	for _, r := range t.Reads {
		n += r.Length
	}
	return n
}

// Think returns how long the boot takes if reads take no time.
func (t *Trace) Think() (longest time.Duration) {
	at := make([]time.Duration, len(t.Reads))
	for i, r := range t.Reads {
		at[i] = r.Think
		if r.After >= 0 {
			at[i] += at[r.After]
		}
		longest = max(longest, at[i])
	}
	return longest
}

// Encode returns the trace as compressed lines of numbers.
func (t *Trace) Encode() []byte {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	last := int64(0)
	for i, r := range t.Reads {
		fmt.Fprintf(z, "%d %d %d %d\n", (r.Offset-last)/512, r.Length/512, i-r.After, r.Think.Microseconds())
		last = r.Offset + r.Length
	}
	_ = z.Close() // a bytes.Buffer does not fail
	return b.Bytes()
}

// maxReads is the largest number of reads in a trace.
const maxReads = 1 << 20

// Decode decodes the output of Encode.
func Decode(r io.Reader) (*Trace, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("reading a trace: %w", err)
	}
	t, last := &Trace{}, int64(0)
	for lines := bufio.NewScanner(z); ; {
		if !lines.Scan() {
			return t, lines.Err()
		}
		var offset, length, back, think int64
		if _, err := fmt.Sscanf(lines.Text(), "%d %d %d %d", &offset, &length, &back, &think); err != nil {
			return nil, fmt.Errorf("reading a trace, line %d: %w", len(t.Reads)+1, err)
		}
		i := len(t.Reads)
		next := Read{last + offset*512, length * 512, i - int(back), time.Duration(think) * time.Microsecond}
		if next.Offset < 0 || next.Length <= 0 || next.After < -1 || next.After >= i || think < 0 || i == maxReads {
			return nil, fmt.Errorf("reading a trace, line %d: out of range", i+1)
		}
		t.Reads = append(t.Reads, next)
		last = next.Offset + next.Length
	}
}

// Waited is the result of a replay.
type Waited struct {
	Total   time.Duration // from the first read to the last answer
	Stalled time.Duration // the part of Total that a disk without latency would save
	Sum     time.Duration // of the durations of all reads
	Waiting time.Duration // with at least one read in flight; delays of timers do not count
}

// Replay repeats the reads with the times between them, and measures. It calls read from many goroutines
// concurrently.
func (t *Trace) Replay(ctx context.Context, read func(ctx context.Context, p []byte, off int64) error) (Waited, error) {
	done := make([]chan struct{}, len(t.Reads))
	for i := range done {
		done[i] = make(chan struct{})
	}
	var mu sync.Mutex
	var sum, waiting time.Duration
	var failures []error
	var under int       // reads in flight
	var since time.Time // when the first of them began
	begin := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if under++; under == 1 {
			since = now
		}
		return now
	}
	end := func(begun time.Time, err error) {
		mu.Lock()
		defer mu.Unlock()
		sum += time.Since(begun)
		if under--; under == 0 {
			waiting += time.Since(since)
		}
		if err != nil {
			failures = append(failures, err)
		}
	}
	var wg sync.WaitGroup
	start := time.Now()
	for i, r := range t.Reads {
		wg.Go(func() {
			defer close(done[i])
			if !r.awaitTurn(ctx, done) {
				return
			}
			begun := begin()
			end(begun, read(ctx, make([]byte, r.Length), r.Offset))
		})
	}
	wg.Wait()
	w := Waited{Total: time.Since(start), Sum: sum, Waiting: waiting}
	w.Stalled = max(w.Total-t.Think(), 0)
	return w, errors.Join(append(failures, ctx.Err())...)
}

// awaitTurn blocks until the read's time. It returns false if the context ends.
func (r Read) awaitTurn(ctx context.Context, done []chan struct{}) bool {
	if r.After >= 0 {
		select {
		case <-done[r.After]:
		case <-ctx.Done():
			return false
		}
	}
	if r.Think == 0 {
		return true
	}
	timer := time.NewTimer(r.Think)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Observed is a recorded read.
type Observed struct {
	Offset, Length int64
	Asked, Done    time.Time
}

// FromObserved makes a trace. Each read follows the last answer before it.
func FromObserved(seen []Observed) *Trace {
	sort.SliceStable(seen, func(a, b int) bool { return seen[a].Asked.Before(seen[b].Asked) })
	t := &Trace{}
	for i, o := range seen {
		r := Read{Offset: o.Offset, Length: o.Length, After: -1, Think: o.Asked.Sub(seen[0].Asked)}
		for j := range i {
			if !seen[j].Done.After(o.Asked) && (r.After < 0 || seen[j].Done.After(seen[r.After].Done)) {
				r.After = j
			}
		}
		if r.After >= 0 {
			r.Think = o.Asked.Sub(seen[r.After].Done)
		}
		t.Reads = append(t.Reads, r)
	}
	return t
}

// Within returns the trace scaled to a faster or slower machine, whose Think is think.
func (t *Trace) Within(think time.Duration) *Trace {
	factor := think.Seconds() / t.Think().Seconds()
	out := &Trace{Reads: append([]Read(nil), t.Reads...)}
	for i := range out.Reads {
		out.Reads[i].Think = time.Duration(float64(out.Reads[i].Think) * factor)
	}
	return out
}
