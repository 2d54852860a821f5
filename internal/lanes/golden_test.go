package lanes_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/simd"
	"cairn/testimages"
)

// TestGolden checks that the indexes equal those of the casync binary with any instruction set. A process selects its
// instructions once, so the test runs itself in child processes.
func TestGolden(t *testing.T) {
	const child = "CAIRN_TEST_GOLDEN"
	if os.Getenv(child) != "" {
		checkGolden(t)
		return
	}
	for _, level := range []simd.Level{simd.Off, simd.AVX2, simd.AVX512} {
		t.Run(level.String(), func(t *testing.T) {
			t.Parallel()
			c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGolden$", "-test.v")
			c.Env = append(os.Environ(), child+"=1", simd.Variable+"="+level.String())
			if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestGolden") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func checkGolden(t *testing.T) {
	image := testimages.SHA256Stream(20 << 20)
	small := chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}
	for _, c := range []struct {
		params chunker.Params
		digest blob.Algorithm
		want   string
	}{
		{chunker.Default, blob.SHA512_256, "170fad156f6f53ffffed4e947903cdb80327164aaeb92d062cbd1a782da07d89"},
		{chunker.Default, blob.SHA256, "e619235069c1469da209e0a4b054091d463ef7388be47b7c934a7441d53a041c"},
		{small, blob.SHA512_256, "336e07371209fc157d3e910159805cd89f95e1c0cdbe3abb85090f736cf7238c"},
	} {
		src := chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
		x, _, err := scan.Image(t.Context(), src, scan.Options{Algorithm: c.digest, Params: c.params, Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(x.Encode())); got != c.want {
			t.Errorf("index with %v, %v is %s, want %s", c.params, c.digest, got, c.want)
		}
	}
}
