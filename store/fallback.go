package store

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
)

// Fallback asks the getters in order until one supplies the chunk. It is ErrNotFound only when every one of
// them proved absence; otherwise the error holds those of the getters that failed or had other bytes.
func Fallback(getters ...Getter) Getter { return fallback(getters) }

type fallback []Getter

func (f fallback) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	var absent, failed error
	for _, g := range f {
		err := g.Get(ctx, d, dst)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrNotFound) {
			absent = join(absent, err)
		} else {
			failed = join(failed, err)
		}
	}
	switch {
	case failed != nil:
		return failed
	case absent != nil:
		return absent
	}
	return fmt.Errorf("chunk %v: no store to ask: %w", d, ErrNotFound)
}

// join is errors.Join on one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}
