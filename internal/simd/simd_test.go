package simd

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestLimit(t *testing.T) {
	for _, c := range []struct {
		have    Level
		setting string
		want    Level
	}{
		{AVX512, "", AVX512}, {AVX512, "avx512", AVX512}, {AVX512, "avx2", AVX2}, {AVX512, "off", Off},
		{AVX2, "avx512", AVX2}, {Off, "avx2", Off}, {AVX2, "", AVX2}, {AVX2, "AVX2", AVX2}, {AVX512, "neon", AVX512},
	} {
		if got := limitLevel(c.have, c.setting); got != c.want {
			t.Errorf("limit(%v, %q) = %v, want %v", c.have, c.setting, got, c.want)
		}
	}
}

// TestVariable runs itself in processes with the variable set, since a process reads it once.
func TestVariable(t *testing.T) {
	const want = "CAIRN_TEST_WANT"
	if level, child := os.LookupEnv(want); child {
		if Allowed().String() != level {
			t.Errorf("Allowed = %v, want %s", Allowed(), level)
		}
		return
	}
	for _, setting := range []string{"off", "avx2", "avx512", "bogus"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVariable$")
			level := limitLevel(Available(), setting).String()
			c.Env = append(os.Environ(), Variable+"="+setting, want+"="+level)
			if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
