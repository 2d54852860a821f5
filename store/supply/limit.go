package supply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cairn/store"
)

// ErrBudget reports that a read would take more bytes than the budget has left.
var ErrBudget = errors.New("the download budget is used up")

// Rate limits the bytes a second of several readers together. Safe for concurrent use.
type Rate struct{ limiter *rate.Limiter }

// NewRate returns a Rate of bytesPerSecond.
func NewRate(bytesPerSecond int64) *Rate {
	const burst = 256 << 10
	return &Rate{rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

// Limit returns a Reader that reads from r no faster than the rate, on average. It reads an object
// at full speed and delays its return and the next reads. It delays each read of a part that is
// streamed.
func (l *Rate) Limit(r store.Reader) store.Reader { return rateLimited{r, l.limiter} }

type rateLimited struct {
	store.Reader
	limiter *rate.Limiter
}

// Unwrap is used by store.As.
func (p rateLimited) Unwrap() store.Reader { return p.Reader }

func (p rateLimited) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := p.awaitRate(ctx, 1); err != nil {
		return nil, err
	}
	out, err := p.Reader.Read(ctx, name, dst, limit)
	for n := int(receivedBytes(dst, out, err)); n > 0; n -= p.limiter.Burst() {
		if err := p.awaitRate(ctx, min(n, p.limiter.Burst())); err != nil {
			return nil, err
		}
	}
	return out, err
}

// StreamRange implements store.RangeStreamer.
func (p rateLimited) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	if err := p.awaitRate(ctx, 1); err != nil {
		return err
	}
	return store.StreamRange(ctx, p.Reader, name, off, n, func(part store.Part, in io.Reader) error {
		return use(part, readerFunc(func(dst []byte) (int, error) {
			n, err := in.Read(dst[:min(len(dst), p.limiter.Burst())])
			wait := p.limiter.ReserveN(time.Now(), n).Delay()
			if ended := store.Sleep(ctx, wait); ended != nil {
				return n, ended
			}
			return n, err
		}))
	})
}

// awaitRate blocks until the rate admits n bytes. When that is after the deadline of ctx, which was
// set for the store and not for the rate, awaitRate returns at once. The bytes still count, and
// delay later reads.
func (p rateLimited) awaitRate(ctx context.Context, n int) error {
	err := p.limiter.WaitN(ctx, n)
	if err == nil || ctx.Err() != nil {
		return err
	}
	p.limiter.ReserveN(time.Now(), n)
	return nil
}

// Budget limits the bytes of several readers together. Safe for concurrent use.
type Budget struct {
	mu      sync.Mutex // guards the fields below
	left    int64      // bytes, less those reserved for reads under way
	reading int        // reads under way
	changed chan struct{}
}

// NewBudget returns a Budget of the given number of bytes.
func NewBudget(bytes int64) *Budget { return &Budget{left: bytes, changed: make(chan struct{})} }

// Limit returns a Reader that reads from r within the budget. A read that may need more than is
// left waits for bytes that other reads give back. Then it requests the object's size before the
// object, and returns ErrBudget if the object is too large.
//
// Bytes of failed reads count too where r reports them (see store.UnavailableError). Those of a
// cancelled request are unknown, so no request should be sent twice under a budget; Open ensures
// that.
func (b *Budget) Limit(r store.Reader) store.Reader { return budgeted{r, b} }

type budgeted struct {
	store.Reader
	budget *Budget
}

// Unwrap is used by store.As.
func (r budgeted) Unwrap() store.Reader { return r.Reader }

func (r budgeted) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	got, err := r.reserve(ctx, name, 0, limit)
	if err != nil {
		return nil, err
	}
	var out []byte
	out, err = r.Reader.Read(ctx, name, dst, got)
	r.budget.release(got, receivedBytes(dst, out, err))
	return out, err
}

// StreamRange implements store.RangeStreamer. Only the bytes that use reads count. If the store
// sends the whole object, use may read more than the range; the reader returns ErrBudget when
// nothing is left for more.
func (r budgeted) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	got, err := r.reserve(ctx, name, off, n)
	if err != nil {
		return err
	}
	used := int64(0)
	defer func() { r.budget.release(got, used) }()
	return store.StreamRange(ctx, r.Reader, name, off, n, func(part store.Part, in io.Reader) error {
		return use(part, readerFunc(func(p []byte) (int, error) {
			if more := used + int64(len(p)) - got; part.Whole && more > 0 {
				got += r.budget.extend(more)
			}
			// One byte more shows whether the object ends there.
			n, err := in.Read(p[:min(int64(len(p)), got-used+1)])
			used += int64(n)
			if used > got {
				return 0, fmt.Errorf("reading %s/%s: %w", r.Reader, name, ErrBudget)
			}
			return n, err
		}))
	})
}

// reserve reserves the bytes of a read of at most n bytes from offset off on. If fewer than n are
// left, they are enough for what the object has there.
func (r budgeted) reserve(ctx context.Context, name string, off, n int64) (got int64, err error) {
	got, err = r.budget.reserve(ctx, n)
	if err != nil {
		return 0, fmt.Errorf("reading %s/%s: %w", r.Reader, name, err)
	}
	if got == n {
		return got, nil
	}
	if err := r.checkSize(ctx, name, off, got); err != nil {
		r.budget.release(got, 0)
		return 0, err
	}
	return got, nil
}

// receivedBytes returns how many bytes a read received after dst, including those of a failed read.
func receivedBytes(dst, out []byte, err error) int64 {
	if err == nil || store.IsSuspect(err) {
		return int64(len(out) - len(dst))
	}
	if broken, ok := errors.AsType[*store.UnavailableError](err); ok {
		return broken.Received
	}
	return 0
}

// checkSize requests an object's size, and returns ErrBudget if the object has more than left bytes
// from offset off on.
func (r budgeted) checkSize(ctx context.Context, name string, off, left int64) error {
	size, err := r.Reader.Stat(ctx, name)
	switch {
	case errors.Is(err, store.ErrNoSize):
		return fmt.Errorf("reading %s/%s of unknown size, where %d are left: %w", r.Reader, name, left, ErrBudget)
	case err != nil && !store.IsSuspect(err):
		return fmt.Errorf("requesting its size, since %d bytes of the download budget are left: %w", left, err)
	case size-off > left:
		return fmt.Errorf("reading %s/%s of %d bytes, where %d are left: %w", r.Reader, name, size-off, left, ErrBudget)
	}
	return nil
}

// reserve reserves want bytes. If fewer are left and no other read is under way that could give
// some back, it reserves the rest.
func (b *Budget) reserve(ctx context.Context, want int64) (int64, error) {
	for {
		got, changed := b.tryReserve(want)
		if got > 0 {
			return got, nil
		}
		if changed == nil {
			return 0, ErrBudget
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (b *Budget) tryReserve(want int64) (got int64, changed chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.left >= want:
		got = want
	case b.reading > 0:
		return 0, b.changed
	case b.left > 0:
		got = b.left
	default:
		return 0, nil
	}
	b.left -= got
	b.reading++
	return got, nil
}

// extend reserves up to want more bytes for a read under way, without waiting. It returns 0 if
// nothing is left.
func (b *Budget) extend(want int64) (got int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	got = max(0, min(want, b.left))
	b.left -= got
	return got
}

func (b *Budget) release(got, used int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += got - used
	b.reading--
	close(b.changed)
	b.changed = make(chan struct{})
}
