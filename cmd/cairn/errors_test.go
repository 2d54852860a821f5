package main

import (
	"errors"
	"testing"

	"cairn/internal/blockdev"
	"cairn/store"
)

// TestWorseThanMended: among the errors of several verified stores, the worst one decides the exit status.
func TestWorseThanMended(t *testing.T) {
	mended := mendedError{"mended"}
	for want, others := range map[int][]error{
		exitMended:   {nil, mended, errors.Join(mended, nil)},
		exitDamaged:  {damagedError{"damaged"}},
		exitNotFound: {store.ErrNotFound},
		exitRefused:  {&blockdev.RefusedError{}},
		exitFailed:   {errors.New("failed"), hintError{errors.New("failed"), "do something"}},
	} {
		for _, other := range others {
			err := errors.Join(mended, other)
			if got := exitStatus(t.Context(), err); got != want {
				t.Errorf("exit status of %v = %d, want %d", err, got, want)
			}
		}
	}
}
