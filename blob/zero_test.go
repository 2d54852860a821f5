package blob

import "testing"

func TestAllZero(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, 4097, 8192, 70_000} {
		p := make([]byte, size)
		if !AllZero(p) {
			t.Errorf("AllZero of %d zeros = false", size)
		}
		for _, at := range []int{0, size / 2, size - 1} {
			if size == 0 {
				break
			}
			p[at] = 1
			if AllZero(p) {
				t.Errorf("AllZero of %d bytes with a one at %d = true", size, at)
			}
			p[at] = 0
		}
	}
}
