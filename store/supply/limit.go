package supply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"cairn/store"
)

// ErrBudget says that reading on would take more bytes than the budget has.
var ErrBudget = errors.New("the download budget is used up")

// Rate is a number of bytes a second that readers may take together. Safe for concurrent use.
type Rate struct{ limiter *rate.Limiter }

// NewRate returns a rate of so many bytes a second.
func NewRate(bytesPerSecond int64) *Rate {
	const burst = 256 << 10
	return &Rate{rate.NewLimiter(rate.Limit(bytesPerSecond), burst)}
}

// Limit returns a Reader that reads from r no faster than the rate, on average. An object is read as fast as it comes,
// and the next ones wait for it.
func (l *Rate) Limit(r store.Reader) store.Reader { return rateLimited{r, l.limiter} }

type rateLimited struct {
	store.Reader
	limiter *rate.Limiter
}

// Unwrap is for store.As.
func (p rateLimited) Unwrap() store.Reader { return p.Reader }

func (p rateLimited) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := p.wait(ctx, 1); err != nil {
		return nil, err
	}
	out, err := p.Reader.Read(ctx, name, dst, limit)
	for n := int(came(dst, out, err)); n > 0; n -= p.limiter.Burst() {
		if err := p.wait(ctx, min(n, p.limiter.Burst())); err != nil {
			return nil, err
		}
	}
	return out, err
}

// wait waits for the turn of n bytes. When that comes behind a deadline, which is set for the store and not for us,
// the bytes count, and others wait for them.
func (p rateLimited) wait(ctx context.Context, n int) error {
	err := p.limiter.WaitN(ctx, n)
	if err == nil || ctx.Err() != nil {
		return err
	}
	p.limiter.ReserveN(time.Now(), n)
	return nil
}

// Budget is a number of bytes that readers may take together. Safe for concurrent use.
type Budget struct {
	mu      sync.Mutex // guards what follows
	left    int64      // bytes, less what is promised to reads under way
	reading int        // reads under way
	changed chan struct{}
}

// NewBudget is a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{left: bytes, changed: make(chan struct{})} }

// Limit reads from r as long as the budget lasts, and never takes more from it than it has: a read that might
// need more than is left waits for what others give back, then asks for the object's size before it is sent, and
// is ErrBudget in the end. What came in vain counts too, where r tells it (see store.UnavailableError); of a request that
// is cancelled nobody knows, so that with a budget none should be sent twice (see Store.Once).
func (b *Budget) Limit(r store.Reader) store.Reader { return budgeted{r, b} }

type budgeted struct {
	store.Reader
	budget *Budget
}

// Unwrap is for store.As.
func (r budgeted) Unwrap() store.Reader { return r.Reader }

func (r budgeted) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	got, err := r.budget.take(ctx, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s/%s: %w", r.Reader, name, err)
	}
	if got < limit {
		err = r.affordable(ctx, name, got)
	}
	var out []byte
	if err == nil {
		out, err = r.Reader.Read(ctx, name, dst, got)
	}
	r.budget.giveBack(got, came(dst, out, err))
	return out, err
}

// came is how many bytes a read brought behind dst, also in vain.
func came(dst, out []byte, err error) int64 {
	if err == nil || store.IsSuspect(err) {
		return int64(len(out) - len(dst))
	}
	if broken, ok := errors.AsType[*store.UnavailableError](err); ok {
		return broken.Received
	}
	return 0
}

// affordable asks how large an object is before more of it is sent than there is left.
func (r budgeted) affordable(ctx context.Context, name string, left int64) error {
	size, err := r.Reader.Stat(ctx, name)
	switch {
	case errors.Is(err, store.ErrNoSize):
		return fmt.Errorf("reading %s/%s of unknown size, where %d are left: %w", r.Reader, name, left, ErrBudget)
	case err != nil && !store.IsSuspect(err):
		return fmt.Errorf("asking for a size, as %d bytes are left of the download budget: %w", left, err)
	case size > left:
		return fmt.Errorf("reading %s/%s of %d bytes, where %d are left: %w", r.Reader, name, size, left, ErrBudget)
	}
	return nil
}

// take promises want bytes; or, when no other read is under way that could give some back, what is left.
func (b *Budget) take(ctx context.Context, want int64) (int64, error) {
	for {
		got, changed := b.tryTake(want)
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

func (b *Budget) tryTake(want int64) (got int64, changed chan struct{}) {
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

func (b *Budget) giveBack(got, used int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += got - used
	b.reading--
	close(b.changed)
	b.changed = make(chan struct{})
}
