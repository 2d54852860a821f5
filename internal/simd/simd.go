// Package simd selects the vector instructions that may be used: those of the CPU and the system,
// limited by the variable CAIRN_SIMD. It does not know their uses.
package simd

import (
	"os"
	"sync"

	"golang.org/x/sys/cpu"
)

// Level is a set of instructions. Each level includes the lower ones.
type Level int

const (
	Off    Level = iota // none
	AVX2                // x86-64 with AVX2
	AVX512              // additionally AVX-512 F, BW, DQ and VL
)

var names = [...]string{Off: "off", AVX2: "avx2", AVX512: "avx512"}

// String returns the level as CAIRN_SIMD spells it.
func (l Level) String() string { return names[l] }

// Variable is the environment variable that limits the level, for tests and to rule out a fault. Its
// values are off, avx2 and avx512; others are ignored. It cannot raise the level above the CPU's. A
// process reads it once.
const Variable = "CAIRN_SIMD"

// Allowed returns the level of this process.
func Allowed() Level { return allowed() }

var allowed = sync.OnceValue(func() Level { return limitLevel(Available(), os.Getenv(Variable)) })

// Available returns the level of the CPU, without the limit of CAIRN_SIMD.
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

func limitLevel(have Level, setting string) Level {
	for l, name := range names {
		if name == setting {
			return min(have, Level(l))
		}
	}
	return have
}
