// Package chunker cuts images into chunks, exactly as casync does. A cut depends on a rolling hash of
// the 48 bytes before it, and on the minimum and maximum chunk size. So equal content gives equal
// chunks at any offset. Workers find the candidates for cuts in any order, and one light pass selects
// the cuts among them. The cuts do not depend on the number of workers or the sizes of reads. The
// package knows nothing of digests, indexes or stores.
package chunker

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Params are the chunk sizes in bytes. A chunk ends at its first candidate at or behind Min, or else at
// Max. Only the last chunk may be smaller than Min. Min = Avg = Max cuts at fixed size.
type Params struct{ Min, Avg, Max int64 }

// Default is casync's default for images.
var Default = Params{16 << 10, 64 << 10, 256 << 10}

const (
	maxAvg  = 8 << 20   // above it casync's cuts depend on the machine (docs/format.md)
	maxSize = 128 << 20 // casync's limit for a chunk
)

// Validate returns an error if images cannot be cut with p. It is stricter than the index format: it
// refuses sizes whose cuts depend on the machine.
func (p Params) Validate() error {
	switch {
	case p.Min < 1 || p.Avg < p.Min || p.Max < p.Avg:
		return fmt.Errorf("chunk sizes %v are not in order (1 ≤ min ≤ avg ≤ max)", p)
	case p.Max > maxSize:
		return fmt.Errorf("chunk sizes %v: the maximum is over %d MiB", p, maxSize>>20)
	case p.Max < window:
		return fmt.Errorf("chunk sizes %v: the maximum is under %d bytes", p, window)
	case p.Avg > maxAvg && !p.isFixed():
		return fmt.Errorf("chunk sizes %v: with an average over %d MiB the cuts depend on the machine", p, maxAvg>>20)
	}
	return nil
}

// String returns the sizes as MIN:AVG:MAX in bytes.
func (p Params) String() string { return fmt.Sprintf("%d:%d:%d", p.Min, p.Avg, p.Max) }

func (p Params) isFixed() bool { return p.Min == p.Avg && p.Avg == p.Max }

// firstCut returns the length of the shortest chunk that can end at a candidate. The window lies inside
// its chunk.
func (p Params) firstCut() int64 { return max(p.Min, window) }

// discriminator returns casync's d: a hash h is a candidate if h mod d = d-1. The fit is casync's. The
// conversion prevents a fused multiply-add, which rounds differently on some machines.
func (p Params) discriminator() uint32 {
	avg := float64(p.Avg)
	d := int64(avg / (float64(-1.42888852e-7*avg) + 1.33237515))
	return uint32(min(max(d, p.Min), p.Max))
}

// ParseParams parses MIN:AVG:MAX, or AVG alone, which means AVG/4:AVG:AVG*4. A number without a suffix
// is in KiB. The suffixes are K and M (with or without "iB") and B (bytes).
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

// inBytes returns a hint for sizes in bytes, as casync has them, or "".
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
