// Package simd says which vector instructions may be used here: those that the CPU and the system have, held back by
// the variable CAIRN_SIMD. It knows nothing of what they are used for.
package simd

import (
	"os"
	"sync"

	"golang.org/x/sys/cpu"
)

// Level is a set of instructions; each includes those before it.
type Level int

const (
	Off    Level = iota // none
	AVX2                // x86-64 with AVX2
	AVX512              // and with AVX-512 F, BW, DQ and VL
)

var names = [...]string{Off: "off", AVX2: "avx2", AVX512: "avx512"}

// String is the level as CAIRN_SIMD spells it.
func (l Level) String() string { return names[l] }

// Variable is the environment variable that holds the level back, for tests and to rule a fault out: off, avx2 or
// avx512. It is read once in a process. It cannot raise the level over what the CPU has; any other value is ignored.
const Variable = "CAIRN_SIMD"

// Allowed is the level of this process.
func Allowed() Level { return allowed() }

var allowed = sync.OnceValue(func() Level { return limit(Available(), os.Getenv(Variable)) })

// Available is what the CPU has, whatever CAIRN_SIMD says.
func Available() Level {
	x := &cpu.X86
	switch {
	case x.HasAVX2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL:
		return AVX512
	case x.HasAVX2:
		return AVX2
	}
	return Off
}

func limit(have Level, setting string) Level {
	for l, name := range names {
		if name == setting {
			return min(have, Level(l))
		}
	}
	return have
}
