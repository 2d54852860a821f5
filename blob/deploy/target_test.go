package deploy

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/testimages"
)

func indexOf(t *testing.T, image []byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), scan.Options{Params: chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestSharedMemoryHoldsFiles: a file under /dev/shm is replaced as a whole, like any other file.
func TestSharedMemoryHoldsFiles(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "cairn-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	x := indexOf(t, testimages.Random(1, 5000))
	for name, held := range map[string][]byte{"old": make([]byte, 10_000), "new": nil} {
		path := filepath.Join(dir, name)
		if held != nil {
			err = os.WriteFile(path, held, 0o600)
		}
		to, openErr := Claim(t.Context(), path, x, Options{})
		if err := errors.Join(err, openErr); err != nil {
			t.Fatal(err)
		}
		if to.inPlace || to.file == nil {
			t.Errorf("the %s file is written in place", name)
		}
		to.Close()
	}
}

// TestFinishCancelled: finalize stops when its context is cancelled, since the tail of a large
// partition can take hours.
func TestFinishCancelled(t *testing.T) {
	path, old := filepath.Join(t.TempDir(), "disk"), testimages.Random(1, 200_000)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	slot, err := blockdev.OpenTarget(t.Context(), path, blockdev.Options{Section: blockdev.Section{Offset: 4096, Size: 150_000}})
	if err != nil {
		t.Fatal(err)
	}
	to := targetInPlace("slot", slot, nil)
	defer to.Close()
	x := indexOf(t, old[4096:104_096])
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tail := range []Tail{TailZero, TailDiscard} {
		if err := to.finalize(ctx, x.Size(), &Options{Tail: tail}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: finalize = %v, want %v", tail, err, context.Canceled)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
			t.Errorf("%s: the tail was changed after that, %v", tail, err)
		}
	}
	if err := to.finalize(t.Context(), x.Size(), &Options{Tail: TailZero}); err != nil {
		t.Fatal(err)
	}
	clear(old[104_096:154_096])
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
		t.Errorf("the tail is not zero, or more is, %v", err)
	}
}

// TestInSteps: the steps cover the range, and each ends at a multiple of step.
func TestInSteps(t *testing.T) {
	const step = 1 << 20
	for _, c := range [][2]int64{{0, 0}, {0, step}, {5, 1}, {5, 3 * step}, {3*step - 1, 2}} {
		next := c[0]
		err := inSteps(t.Context(), c[0], c[1], step, func(off, n int64) error {
			if off != next || n <= 0 || n > step {
				t.Errorf("%v: %d bytes at %d, want some at %d", c, n, off, next)
			}
			if next += n; next != c[0]+c[1] && next%step != 0 {
				t.Errorf("%v: a step ends at %d", c, next)
			}
			return nil
		})
		if err != nil || next != c[0]+c[1] {
			t.Errorf("%v: inSteps = %v, and ends at %d", c, err, next)
		}
	}
}
