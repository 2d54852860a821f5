package lanes

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/simd"
)

// availableHashers returns all hashers that the CPU supports.
func availableHashers() map[string]*hasher {
	all := map[string]*hasher{}
	for level := simd.Off; level <= simd.Available(); level++ {
		all["sha512-256/"+string(newHasher512(level).kernel)] = newHasher512(level)
		all["sha256/"+string(newHasher256(level).kernel)] = newHasher256(level)
	}
	return all
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

// compare compares the digests of messages with those of the standard library.
func compare(t *testing.T, h *hasher, messages [][]byte) {
	t.Helper()
	type sums map[int][32]byte
	got, want := sums{}, sums{}
	h.sumAll(messages, func(i int, sum [32]byte) {
		if _, twice := got[i]; twice {
			t.Errorf("sumAll returned the digest of message %d twice", i)
		}
		got[i] = sum
	})
	for i, p := range messages {
		want[i] = h.sum(p)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("digests of %d messages (-standard library +lanes):\n%s", len(messages), diff)
	}
}

func TestSumAll(t *testing.T) {
	pool := random(1, 2<<20)
	for name, h := range availableHashers() {
		t.Run(name+"/all short lengths", func(t *testing.T) {
			var messages [][]byte
			for n := range 301 {
				messages = append(messages, pool[n:n+n]) // with all alignments
			}
			compare(t, h, messages)
		})
		t.Run(name+"/counts", func(t *testing.T) {
			for count := range 40 {
				var messages [][]byte
				for i := range count {
					messages = append(messages, pool[7*i:7*i+1000])
				}
				compare(t, h, messages)
			}
		})
		t.Run(name+"/one long", func(t *testing.T) {
			for count := range 20 {
				messages := [][]byte{nil, pool[1:]}
				for i := range count {
					messages = append(messages, pool[i:3000*i])
				}
				compare(t, h, messages)
			}
		})
		t.Run(name+"/long", func(t *testing.T) { // needs several calls of the kernel
			var messages [][]byte
			for i := range maxLanes {
				messages = append(messages, pool[i:i+maxRun*h.blockSize()+i*100])
			}
			compare(t, h, messages)
		})
	}
}

// TestMixes checks messages of random sizes.
func TestMixes(t *testing.T) {
	pool := random(2, 1<<20)
	for name, h := range availableHashers() {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(3, 4))
			for _, count := range []int{1, 2, 7, 8, 9, 15, 16, 17, 33, maxSort, maxSort + 1, 2*maxSort + 3} {
				compare(t, h, mix(rng, pool, count, 8000))
			}
		})
	}
}

// mix cuts count messages of up to limit bytes out of pool.
func mix(rng *rand.Rand, pool []byte, count, limit int) [][]byte {
	var messages [][]byte
	for range count {
		size := rng.IntN(limit + 1)
		from := rng.IntN(len(pool) - size + 1)
		messages = append(messages, pool[from:from+size])
	}
	return messages
}

// TestExported checks the exported functions.
func TestExported(t *testing.T) {
	type digest [32]byte
	messages := [][]byte{nil, []byte("abc"), random(1, 100_000), random(2, 1), random(3, 128)}
	var want512, want256 []digest
	for _, p := range messages {
		want512, want256 = append(want512, sha512.Sum512_256(p)), append(want256, sha256.Sum256(p))
	}
	got := make([]digest, len(messages))
	Sum512_256(got, messages)
	if diff := cmp.Diff(want512, got); diff != "" {
		t.Errorf("Sum512_256 (-want +got):\n%s", diff)
	}
	Sum256(got, messages)
	if diff := cmp.Diff(want256, got); diff != "" {
		t.Errorf("Sum256 (-want +got):\n%s", diff)
	}
}

// TestNoGarbage checks that calls after the first one do not allocate.
func TestNoGarbage(t *testing.T) {
	messages := mix(rand.New(rand.NewPCG(5, 6)), random(1, 1<<20), 300, 1000)
	dst := make([][32]byte, len(messages))
	if n := testing.AllocsPerRun(20, func() { Sum512_256(dst, messages); Sum256(dst, messages) }); n > 1 {
		t.Errorf("%v allocations per call, want at most 1", n)
	}
}

// FuzzSumAll hashes random messages of any number and size.
func FuzzSumAll(f *testing.F) {
	f.Add(uint64(1), uint16(20), uint16(3000))
	f.Add(uint64(2), uint16(maxSort+1), uint16(130))
	f.Add(uint64(3), uint16(3), uint16(65535))
	f.Fuzz(func(t *testing.T, seed uint64, count, limit uint16) {
		rng := rand.New(rand.NewPCG(seed, 8))
		messages := mix(rng, random(seed, int(limit)+200), int(count%600), int(limit))
		for _, h := range availableHashers() {
			compare(t, h, messages)
		}
	})
}

// BenchmarkSumAll hashes a worker's segment: chunks with the size distribution of the default parameters.
func BenchmarkSumAll(b *testing.B) {
	pool := random(1, 8<<20)
	for _, count := range []int{1, 4, 8, 16, 32, 100} {
		messages, total := segment(pool, count)
		for name, h := range availableHashers() {
			b.Run(fmt.Sprintf("%s/%d", name, count), func(b *testing.B) {
				b.SetBytes(int64(total))
				for b.Loop() {
					h.sumAll(messages, func(int, [32]byte) {})
				}
			})
		}
	}
}

// segment cuts pool into at most count chunks.
func segment(pool []byte, count int) (messages [][]byte, total int) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range count {
		size := min(16<<10+int(rng.ExpFloat64()*(60<<10)), 256<<10, len(pool)-total)
		messages = append(messages, pool[total:total+size])
		total += size
	}
	return messages, total
}

// BenchmarkKernel measures the kernels with full lanes.
func BenchmarkKernel(b *testing.B) {
	pool := random(1, 1<<20)
	for name, h := range availableHashers() {
		if h.kernel == none {
			continue
		}
		b.Run(name, func(b *testing.B) {
			var state [512]byte
			var from [maxLanes]*byte
			size := len(pool) / h.width
			for i := range h.width {
				from[i] = &pool[i*size]
			}
			b.SetBytes(int64(len(pool)))
			for b.Loop() {
				h.hashBlocks(&state, &from, size/h.blockSize())
			}
		})
	}
}
