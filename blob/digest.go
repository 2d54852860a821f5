package blob

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"

	"cairn/internal/lanes"
)

// Digest identifies a chunk: 32 bytes of SHA-512/256 or SHA-256 over its plain bytes.
// The value does not name the hash function; Index.Algorithm does.
type Digest [32]byte

// String returns the digest in 64 lower-case hexadecimal digits, as in chunk file names.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ParseDigest parses a digest. It accepts only the spelling that String returns.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(d) || hex.EncodeToString(raw) != s {
		return d, fmt.Errorf("%q is not a digest (64 lower-case hexadecimal digits)", s)
	}
	return Digest(raw), nil
}

// MarshalText implements encoding.TextMarshaler with String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseDigest.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// Algorithm is the hash function that makes digests. The zero value is casync's default.
type Algorithm uint8

const (
	SHA512_256 Algorithm = iota // FIPS 180-4 SHA-512/256, which has its own initial value
	SHA256
)

// ParseAlgorithm parses a name as casync and desync spell it: sha512-256 or sha256.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch s {
	case "sha512-256":
		return SHA512_256, nil
	case "sha256":
		return SHA256, nil
	}
	return 0, fmt.Errorf("unknown digest %q (sha512-256 or sha256)", s)
}

// String returns the name that ParseAlgorithm parses.
func (a Algorithm) String() string {
	if a == SHA256 {
		return "sha256"
	}
	return "sha512-256"
}

// Sum returns the digest of one chunk.
func (a Algorithm) Sum(p []byte) Digest {
	if a == SHA256 {
		return sha256.Sum256(p)
	}
	return sha512.Sum512_256(p)
}

// NewHash returns a hash whose sum is the digest of the written bytes.
func (a Algorithm) NewHash() hash.Hash {
	if a == SHA256 {
		return sha256.New()
	}
	return sha512.New512_256()
}

// SumZeros returns the digest of size zero bytes.
func (a Algorithm) SumZeros(size int64) Digest {
	h := a.NewHash()
	var zeros [4096]byte
	for ; size > 0; size -= int64(len(zeros)) {
		h.Write(zeros[:min(size, int64(len(zeros)))])
	}
	return Digest(h.Sum(nil))
}

// SumAll stores the digest of chunks[i] in dst[i]. It hashes several chunks at once, which is much
// faster than calling Sum for each.
func (a Algorithm) SumAll(dst []Digest, chunks [][]byte) {
	if a == SHA256 {
		lanes.Sum256(dst, chunks)
		return
	}
	lanes.Sum512_256(dst, chunks)
}
