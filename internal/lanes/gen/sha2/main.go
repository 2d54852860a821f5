// Command sha2 writes the kernels of internal/lanes: SHA-512 in 8 lanes and SHA-256 in 16 of AVX-512, and SHA-512 in
// 4 lanes of AVX2. A vector holds the same word of all lanes, so that each instruction of the plain algorithm (FIPS
// 180-4) becomes one of vectors; what is left to do is to bring the lanes' words together, which is a transposition.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

var (
	z = []VecPhysical{
		Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
		Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31,
	}
	y = []VecPhysical{Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15}
	x = []VecPhysical{X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15}
)

// sha is one of the two functions: how wide a word is, by how much its sigmas rotate (the last of the small ones
// shifts), and its constants.
type sha struct {
	word           int // bytes
	rounds         int
	big0, big1     [3]uint64
	small0, small1 [3]uint64
	constants      Mem
	swap           Mem // byte order, for VPSHUFB
}

func (s sha) block() int { return 16 * s.word }

func main() {
	wide := sha{
		word: 8, rounds: 80,
		big0: [3]uint64{28, 34, 39}, big1: [3]uint64{14, 18, 41},
		small0: [3]uint64{1, 8, 7}, small1: [3]uint64{19, 61, 6},
		constants: GLOBL("constants512", RODATA|NOPTR),
	}
	for i, k := range roots(wide.rounds) {
		DATA(8*i, U64(k))
	}
	wide.swap = byteOrder("swap512", wide.word)
	narrow := sha{
		word: 4, rounds: 64,
		big0: [3]uint64{2, 13, 22}, big1: [3]uint64{6, 11, 25},
		small0: [3]uint64{7, 18, 3}, small1: [3]uint64{17, 19, 10},
		constants: GLOBL("constants256", RODATA|NOPTR),
	}
	for i, k := range roots(narrow.rounds) {
		DATA(4*i, U32(k>>32))
	}
	narrow.swap = byteOrder("swap256", narrow.word)
	avx512(wide, 8)
	avx512(narrow, 16)
	avx2(wide)
	Generate()
}

// byteOrder is the VPSHUFB pattern that turns the big-endian words of a message into the machine's.
func byteOrder(name string, word int) Mem {
	pattern := GLOBL(name, RODATA|NOPTR)
	for i := range 64 {
		DATA(i, U8(i%16^(word-1)))
	}
	return pattern
}

// arguments are what all kernels take, in registers.
type arguments struct {
	state, messages, blocks, offset, constants, last Register
}

// begin starts a kernel and the loop over its blocks.
func begin(name string, lanes int, needs string, s sha) arguments {
	TEXT(name, NOSPLIT, "func(state *[512]byte, messages *[16]*byte, blocks int)")
	Doc(fmt.Sprintf("%s hashes so many blocks of %d bytes of the first %d messages. It needs %s.",
		name, s.block(), lanes, needs))
	Pragma("noescape")
	a := arguments{
		state:     Load(Param("state"), RAX).(Register),
		messages:  Load(Param("messages"), RBX).(Register),
		blocks:    Load(Param("blocks"), RCX).(Register),
		offset:    R13,
		constants: R12,
		last:      R11,
	}
	LEAQ(s.constants.Offset(s.word*(s.rounds-16)), a.last)
	XORQ(a.offset, a.offset)
	return a
}

// all writes the rounds: a loop of 16, whose schedule prepares the next 16, and the last 16. The loop keeps the code
// small; 16 is what brings both the state and the schedule back to the registers they had before.
func (a arguments) all(s sha, round func(t int, k Mem, schedule bool)) {
	LEAQ(s.constants, a.constants)
	Label("rounds")
	for t := range 16 {
		round(t, Mem{Base: a.constants, Disp: s.word * t}, true)
	}
	ADDQ(Imm(uint64(16*s.word)), a.constants)
	CMPQ(a.constants, a.last)
	JNE(LabelRef("rounds"))
	for t := range 16 {
		round(t, Mem{Base: a.constants, Disp: s.word * t}, false)
	}
}

// end ends the loop and the kernel.
func end(a arguments, s sha) {
	ADDQ(U32(s.block()), a.offset)
	DECQ(a.blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// at is the message of a lane, some bytes into the current block; p is a register to use.
func (a arguments) at(p Register, lane, disp int) Mem {
	MOVQ(Mem{Base: a.messages, Disp: 8 * lane}, p)
	return Mem{Base: p, Index: a.offset, Scale: 1, Disp: disp}
}

// turn renames the words of the state for round t, which is all that moving them along takes.
func turn(v []VecPhysical, t int) []VecPhysical {
	t %= 8
	return append(append([]VecPhysical{}, v[8-t:]...), v[:8-t]...)
}
