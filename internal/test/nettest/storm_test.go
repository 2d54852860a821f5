package nettest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/blob/assemble"
	"cairn/blob/verify"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/internal/test/netlab"
	"cairn/seed"
	"cairn/store"
)

// tally counts the faults of all rigs.
type tally struct {
	mu     sync.Mutex // guards counts
	counts map[netlab.Fault]int64
}

func (a *tally) add(rigs ...*rig) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range rigs {
		for kind, n := range g.Counts() {
			a.counts[kind] += n
		}
	}
}

func (a *tally) total() (n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k := range maps.Values(a.counts) {
		n += k
	}
	return n
}

func (a *tally) String() string {
	var lines []string
	for _, kind := range slices.Sorted(maps.Keys(a.counts)) {
		lines = append(lines, fmt.Sprintf("%v %d", kind, a.counts[kind]))
	}
	return strings.Join(lines, ", ")
}

// storm returns the number of faults, and of chunks in each job.
func storm(t testing.TB) (faults int64, chunks int) {
	switch {
	case os.Getenv("CAIRN_LONG") == "1":
		return 100_000, 4096
	case testing.Short():
		return 500, 256
	}
	return 10_000, 2048
}

// TestStorm injects all faults at once, into one store and into two, while each kind of job reads from them. No
// byte is wrong and no job hangs. No job fails if the second store has only faults that retries heal.
func TestStorm(t *testing.T) {
	seed := theSeed(t)
	faults, chunks := storm(t)
	r := newRelease(t, chunks)
	all := tally{counts: map[netlab.Fault]int64{}}
	var healed, clear int
	for round := uint64(0); all.total() < faults; round++ {
		first := netlab.Of(seed+2*round, 0.5, but(netlab.Stale)...)
		second := netlab.Of(seed+2*round+1, 0.2, but(netlab.Stale, netlab.WebPage, netlab.Denied, netlab.Missing,
			netlab.ShortLength, netlab.BitFlip, netlab.OtherBytes, netlab.Zeros, netlab.Disguised)...)
		weigh(first.Mix)
		weigh(second.Mix)
		for name, job := range jobs() {
			if all.total() >= faults && round > 0 { // each job ran during the faults
				break
			}
			bad, worse := newRig(t, r, first), newRig(t, r, second)
			if err := job(t, r, from(patient, bad, worse)); err != nil {
				t.Errorf("%s in round %d: %v, and a second store had all", name, round, err)
			}
			alone := newRig(t, r, mild(first))
			switch err := job(t, r, from(patient, alone)); class(err) {
			case "":
				healed++
			case "plain":
				if !strings.Contains(err.Error(), "web page") {
					t.Errorf("%s in round %d: an error of no class: %v", name, round, err)
				}
				clear++
			default:
				clear++
			}
			all.add(bad, worse, alone)
		}
	}
	t.Logf("%d faults; alone, a store gave the image %d times and a clear error %d times; %v", all.total(), healed, clear, &all)
}

// weigh gives less weight to the faults that take the whole patience.
func weigh(mix map[netlab.Fault]int) {
	slow := []netlab.Fault{netlab.Silent, netlab.SlowHeader, netlab.SlowBody}
	for k := range mix {
		if !slices.Contains(slow, k) {
			mix[k] *= 12
		}
	}
}

// mild returns f with fewer final faults, so that a job on one store makes progress.
func mild(f netlab.Faults) netlab.Faults {
	f.Mix = maps.Clone(f.Mix)
	for _, k := range []netlab.Fault{netlab.WebPage, netlab.Denied, netlab.Missing} {
		delete(f.Mix, k)
	}
	f.Rate /= 4
	return f
}

// jobs returns all kinds of jobs that read chunks.
func jobs() map[string]func(*testing.T, *release, store.Getter) error {
	return map[string]func(*testing.T, *release, store.Getter) error{
		"assemble": func(t *testing.T, r *release, from store.Getter) error { return assembled(t, r, from) },
		"cat":      concatenated,
		"serve":    served,
		"verify":   verified,
	}
}

// concatenated writes the image in order.
func concatenated(t *testing.T, r *release, from store.Getter) error {
	return within(t, func(ctx context.Context) error {
		var out bytes.Buffer
		to := assemble.Sink{Writer: &out, Size: r.index.Size()}
		_, err := assemble.Stream(ctx, seed.NewPlan(r.index), from, to, assemble.Options{})
		if !bytes.HasPrefix(r.image, out.Bytes()) || err == nil && out.Len() != len(r.image) {
			t.Errorf("cat wrote %d bytes, and not the image's; it returned %v", out.Len(), err)
		}
		return err
	})
}

// served reads the whole image in random order from several goroutines, as an NBD server does. It repeats a
// failed read a few times, and returns the error of a read that always fails.
func served(t *testing.T, r *release, from store.Getter) error {
	return within(t, func(ctx context.Context) error {
		cache := fetch.New(ctx, fetch.Options{Fetches: fetches, Bytes: 64 * chunkSize})
		defer cache.Close()
		image := view.New(r.index, cache.NewSource(from, fetch.SourceOptions{}), view.Options{Around: true})
		const readers = 16
		failed := make([]error, readers)
		var group sync.WaitGroup
		for n := range readers {
			group.Go(func() { failed[n] = readShare(t, ctx, image, r.image, n, readers) })
		}
		group.Wait()
		for _, err := range failed {
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// readShare reads the n-th of shares parts of the image.
func readShare(t *testing.T, ctx context.Context, image *view.Image, want []byte, n, shares int) (failed error) {
	const size, again = 3 * chunkSize, 4
	random := rand.New(rand.NewPCG(uint64(n), 0))
	for _, i := range random.Perm(len(want) / size / shares) {
		off := (i*shares + n) * size
		p := make([]byte, size)
		var err error
		for range again {
			if err = image.ReadAt(ctx, p, int64(off)); err == nil {
				break
			}
		}
		switch {
		case err != nil:
			failed = err
		case !bytes.Equal(p, want[off:off+size]):
			t.Errorf("a read at %d gave wrong bytes", off)
		}
	}
	return failed
}

// verified verifies that the store is complete; damage is an error.
func verified(t *testing.T, r *release, from store.Getter) error {
	return within(t, func(ctx context.Context) error {
		report, err := verify.Store(ctx, r.index, from, verify.Options{Workers: fetches})
		if err == nil && report.Bad > 0 {
			return report.Causes[0]
		}
		if err == nil && report.Done != r.index.Size() {
			t.Errorf("verify looked at %d bytes of %d", report.Done, r.index.Size())
		}
		return err
	})
}
