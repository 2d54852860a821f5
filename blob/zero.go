package blob

import "bytes"

// AllZero reports whether every byte of p is zero.
func AllZero(p []byte) bool {
	var zeros [4096]byte
	for ; len(p) > len(zeros); p = p[len(zeros):] {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
	}
	return bytes.Equal(p, zeros[:len(p)])
}
