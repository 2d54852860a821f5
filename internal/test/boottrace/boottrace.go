// Package boottrace is what a booting machine asks of its disk, recorded once and replayed at will: the reads with
// the times between them, and what each of them had to wait for. So the time that a boot waits for its disk
// can be measured again and again, without a machine and without its noise. It is for tests.
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

// Read is a read that a machine made.
type Read struct {
	Offset int64
	Length int64
	After  int           // the number of the read whose answer it came after; -1 for none
	Think  time.Duration // how long after that, or after the beginning
}

// Trace is the reads of a boot, in the order in which they were made.
type Trace struct{ Reads []Read }

// Bytes is the sum of the lengths.
func (t *Trace) Bytes() (n int64) {
	for _, r := range t.Reads {
		n += r.Length
	}
	return n
}

// Think is how long the boot takes when no read takes any time.
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

// Encode is the trace as lines of numbers, compressed.
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

// maxReads bounds what a trace may hold.
const maxReads = 1 << 20

// Decode reads what Encode wrote.
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

// Waited is what a replay measured.
type Waited struct {
	Total   time.Duration // from the first read to the last answer
	Stalled time.Duration // of that, what a disk that takes no time would have saved
	Sum     time.Duration // that the reads took, each by itself
	Waiting time.Duration // in which at least one read was under way; late timers do not count
}

// Replay makes the reads again, with the times between them, and measures. The read function is called by many
// goroutines at once.
func (t *Trace) Replay(ctx context.Context, read func(ctx context.Context, p []byte, off int64) error) (Waited, error) {
	done := make([]chan struct{}, len(t.Reads))
	for i := range done {
		done[i] = make(chan struct{})
	}
	var mu sync.Mutex
	var sum, waiting time.Duration
	var failures []error
	var under int       // reads under way
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
			if !r.due(ctx, done) {
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

// due waits until the read is to be made.
func (r Read) due(ctx context.Context, done []chan struct{}) bool {
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

// Observed is a read as a recorder has seen it.
type Observed struct {
	Offset, Length int64
	Asked, Done    time.Time
}

// FromObserved makes a trace: each read came after the last answer before it.
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

// Within is the trace on a machine that is as much faster, or slower, as it takes to think for so long in all.
func (t *Trace) Within(think time.Duration) *Trace {
	factor := think.Seconds() / t.Think().Seconds()
	out := &Trace{Reads: append([]Read(nil), t.Reads...)}
	for i := range out.Reads {
		out.Reads[i].Think = time.Duration(float64(out.Reads[i].Think) * factor)
	}
	return out
}
