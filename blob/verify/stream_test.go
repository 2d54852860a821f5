package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// TestStream: a stream gives the same report as a file, whatever the sizes of its reads.
func TestStream(t *testing.T) {
	image := image()
	x, size := index(t, image), int64(len(image))
	for _, c := range []struct {
		name    string
		held    []byte
		differs bool // in length
	}{
		{"right", image, false},
		{"several chunks differ", flipped(image, 0, 5*chunkSize, 63*chunkSize, 64*chunkSize, len(image)-1), false},
		{"zeros more", append(bytes.Clone(image), make([]byte, 100_000)...), false},
		{"zeros and other bytes more", append(append(bytes.Clone(image), make([]byte, 100_000)...), 1), true},
		{"other bytes more", append(bytes.Clone(image), 1), true},
		{"a byte fewer", image[:size-1], true},
		{"chunks fewer", image[:3*chunkSize], true},
		{"nothing", nil, true},
	} {
		for _, workers := range []int{1, 4} {
			r := iotest.HalfReader(bytes.NewReader(c.held))
			got, err := Stream(t.Context(), x, r, Options{Workers: workers})
			if _, differs := errors.AsType[LengthError](err); differs != c.differs || err != nil && !differs {
				t.Errorf("%s: Stream = %v", c.name, err)
			}
			want, _ := Image(t.Context(), x, bytes.NewReader(c.held), Options{Workers: workers})
			if diff := cmp.Diff(want, got); !c.differs && diff != "" {
				t.Errorf("%s: Stream's report is not Image's (-want +got):\n%s", c.name, diff)
			}
		}
	}
	broken := errors.New("broken")
	for _, r := range []io.Reader{
		io.MultiReader(bytes.NewReader(image[:5*chunkSize]), iotest.ErrReader(broken)),
		io.MultiReader(bytes.NewReader(image), iotest.ErrReader(broken)),
	} {
		if _, err := Stream(t.Context(), x, r, Options{}); !errors.Is(err, broken) {
			t.Errorf("Stream of a broken reader = %v, want %v", err, broken)
		}
	}
	if got, err := Stream(t.Context(), index(t, nil), bytes.NewReader(nil), Options{}); err != nil || !cmp.Equal(got, Report{}) {
		t.Errorf("Stream of nothing = %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Stream(ctx, x, bytes.NewReader(image), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Stream with an ended context = %v", err)
	}
}
