// Package chunker says where to cut an image into chunks, exactly as casync does: a cut depends on a
// rolling hash of the 48 bytes before it and on the minimum and maximum chunk size, so that equal content
// gives equal chunks wherever it lies. Candidates for cuts are found in any order (Finder), cuts are then
// selected in one light pass; so serial and parallel cutting agree for any number of workers and any size
// of reads. The package knows nothing of digests, indexes or stores.
package chunker

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Params are the chunk sizes in bytes. A cut falls at the first candidate at or behind Min, else at Max;
// only the last chunk may be smaller. Min = Avg = Max cuts at fixed size.
type Params struct{ Min, Avg, Max int64 }

// Default is casync's choice for images.
var Default = Params{16 << 10, 64 << 10, 256 << 10}

const (
	maxAvg  = 8 << 20   // above it casync's cuts depend on the machine (docs/format.md)
	maxSize = 128 << 20 // casync's limit for a chunk
)

// Validate says why images cannot be cut with p, if they cannot. It is stricter than what an index may
// hold: sizes whose cuts are not the same on every machine are refused.
func (p Params) Validate() error {
	switch {
	case p.Min < 1 || p.Avg < p.Min || p.Max < p.Avg:
		return fmt.Errorf("chunk sizes %v are not in order (1 ≤ min ≤ avg ≤ max)", p)
	case p.Max > maxSize:
		return fmt.Errorf("chunk sizes %v: the maximum is over %d MiB", p, maxSize>>20)
	case p.Max < window:
		return fmt.Errorf("chunk sizes %v: the maximum is under %d bytes", p, window)
	case p.Avg > maxAvg && !p.fixed():
		return fmt.Errorf("chunk sizes %v: an average over %d MiB does not cut alike on all machines", p, maxAvg>>20)
	}
	return nil
}

// String is MIN:AVG:MAX in bytes.
func (p Params) String() string { return fmt.Sprintf("%d:%d:%d", p.Min, p.Avg, p.Max) }

func (p Params) fixed() bool { return p.Min == p.Avg && p.Avg == p.Max }

// first is the length of the shortest chunk a candidate may end: the window lies inside its chunk.
func (p Params) first() int64 { return max(p.Min, window) }

// discriminator is casync's d: a hash h is a candidate when h mod d = d-1. The fit is casync's; the
// conversion keeps the product from being fused into the sum, which would round otherwise on some machines.
func (p Params) discriminator() uint32 {
	avg := float64(p.Avg)
	d := int64(avg / (float64(-1.42888852e-7*avg) + 1.33237515))
	return uint32(min(max(d, p.Min), p.Max))
}

// ParseParams reads MIN:AVG:MAX, or AVG alone, which gives AVG/4:AVG:AVG*4. A number without a suffix
// is in KiB; K, M (with or without "iB") and B (bytes) say otherwise.
func ParseParams(text string) (Params, error) {
	var sizes []int64
	for part := range strings.SplitSeq(text, ":") {
		n, err := parseSize(part)
		if err != nil {
			return Params{}, fmt.Errorf("chunk sizes %q: %w", text, err)
		}
		sizes = append(sizes, n)
	}
	var p Params
	switch len(sizes) {
	case 1:
		p = Params{max(sizes[0]/4, 1), sizes[0], min(sizes[0]*4, maxSize)}
	case 3:
		p = Params{sizes[0], sizes[1], sizes[2]}
	default:
		return Params{}, fmt.Errorf("chunk sizes %q: want MIN:AVG:MAX or AVG", text)
	}
	err := p.Validate()
	if err != nil && !strings.ContainsAny(text, "KMBi") {
		err = fmt.Errorf("%w: numbers without a suffix are KiB%s", err, inBytes(sizes))
	}
	return p, err
}

// inBytes is what was meant, if the numbers are bytes, as casync has them.
func inBytes(sizes []int64) string {
	var bytes, short []string
	for _, size := range sizes {
		n := size >> 10
		bytes = append(bytes, fmt.Sprintf("%dB", n))
		if n%1024 != 0 {
			return ""
		}
		short = append(short, strconv.FormatInt(n>>10, 10))
	}
	return fmt.Sprintf("; casync's bytes are %s or %s here", strings.Join(short, ":"), strings.Join(bytes, ":"))
}

var units = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"K", 1 << 10}, {"M", 1 << 20}, {"B", 1}, {"", 1 << 10}}

func parseSize(text string) (int64, error) {
	for _, u := range units {
		digits, found := strings.CutSuffix(text, u.suffix)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 40)
		if err != nil || int64(n) > math.MaxInt64/u.bytes {
			break
		}
		return int64(n) * u.bytes, nil
	}
	return 0, fmt.Errorf("%q is not a size (such as 64, 64K, 1M, 4096B)", text)
}
