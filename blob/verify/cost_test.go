package verify

import (
	"io"
	"math"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/testimages"
)

// again is an image of data without zeros.
type again struct {
	data []byte
	size int64
}

func (a again) Size() int64 { return a.size }

func (a again) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < a.size {
		k := copy(p[n:], a.data[off%int64(len(a.data)):][:min(int64(len(a.data))-off%int64(len(a.data)), a.size-off)])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// TestZerosCostLess: zeros cost less than data, because they are compared and not hashed. The test
// measures the CPU time of this process for both in turn, and takes the least of several runs, so other
// processes affect neither. The gain is several times the bound.
func TestZerosCostLess(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes comparing dear")
	}
	const size = 32 << 20
	cost := func(data []byte) func() time.Duration {
		image := again{data, size}
		whole := make([]byte, size)
		if _, err := image.ReadAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		x := index(t, whole)
		return func() time.Duration {
			begun := cpuTime(t)
			if got, err := Image(t.Context(), x, image, Options{Workers: 1}); err != nil || got.Bad != 0 {
				t.Fatalf("Image = %+v, %v", got, err)
			}
			return cpuTime(t) - begun
		}
	}
	ofZeros, ofData := cost(make([]byte, 1<<20)), cost(testimages.Random(1, 1<<20))
	zeros, data := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	for range 7 {
		zeros, data = min(zeros, ofZeros()), min(data, ofData())
	}
	t.Logf("%v for zeros, %v for data", zeros, data)
	if zeros*5/4 > data {
		t.Errorf("%v for zeros, %v for data: want less than 4/5 of it", zeros, data)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
