// Command sha2 generates the kernels of internal/lanes: with AVX-512, SHA-512 in 8 lanes and SHA-256 in 16, and with
// AVX2, SHA-512 in 4 lanes. A vector holds the same word of all lanes, so each instruction of the plain algorithm
// (FIPS 180-4) becomes one vector instruction. In addition, the kernels transpose the messages, to gather the lanes'
// words.
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

// sha holds the parameters of one hash function: its word size, the rotations of its sigmas, and its constants. The
// last value of small0 and small1 is a shift.
type sha struct {
	word           int // bytes
	rounds         int
	big0, big1     [3]uint64
	small0, small1 [3]uint64
	constants      Mem
	swap           Mem // reverses the byte order, for VPSHUFB
}

func (s sha) blockSize() int { return 16 * s.word }

func main() {
	sha512 := sha{
		word: 8, rounds: 80,
		big0: [3]uint64{28, 34, 39}, big1: [3]uint64{14, 18, 41},
		small0: [3]uint64{1, 8, 7}, small1: [3]uint64{19, 61, 6},
		constants: GLOBL("constants512", RODATA|NOPTR),
	}
	for i, k := range roundConstants(sha512.rounds) {
		DATA(8*i, U64(k))
	}
	sha512.swap = byteOrder("swap512", sha512.word)
	sha256 := sha{
		word: 4, rounds: 64,
		big0: [3]uint64{2, 13, 22}, big1: [3]uint64{6, 11, 25},
		small0: [3]uint64{7, 18, 3}, small1: [3]uint64{17, 19, 10},
		constants: GLOBL("constants256", RODATA|NOPTR),
	}
	for i, k := range roundConstants(sha256.rounds) {
		DATA(4*i, U32(k>>32))
	}
	sha256.swap = byteOrder("swap256", sha256.word)
	writeAVX512(sha512, 8)
	writeAVX512(sha256, 16)
	writeAVX2(sha512)
	Generate()
}

// byteOrder returns the VPSHUFB pattern that converts the big-endian words of a message to the CPU's byte order.
func byteOrder(name string, word int) Mem {
	pattern := GLOBL(name, RODATA|NOPTR)
	for i := range 64 {
		DATA(i, U8(i%16^(word-1)))
	}
	return pattern
}

// arguments are the registers of a kernel's arguments.
type arguments struct {
	state, messages, blocks, offset, constants, last Register
}

// beginKernel starts a kernel and its loop over the blocks.
func beginKernel(name string, lanes int, needs string, s sha) arguments {
	TEXT(name, NOSPLIT, "func(state *[512]byte, messages *[16]*byte, blocks int)")
	Doc(fmt.Sprintf("%s hashes the next blocks of %d bytes of the first %d messages. It needs %s.",
		name, s.blockSize(), lanes, needs))
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

// writeRounds writes the rounds: a loop of 16, whose schedule prepares the next 16, and the last 16. The loop keeps
// the code small. After 16 rounds the state and the schedule are in the same registers again.
func (a arguments) writeRounds(s sha, round func(t int, k Mem, schedule bool)) {
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

// endKernel ends the loop and the kernel.
func endKernel(a arguments, s sha) {
	ADDQ(U32(s.blockSize()), a.offset)
	DECQ(a.blocks)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

// blockOf returns the address of a lane's current block, plus disp. It overwrites p.
func (a arguments) blockOf(p Register, lane, disp int) Mem {
	MOVQ(Mem{Base: a.messages, Disp: 8 * lane}, p)
	return Mem{Base: p, Index: a.offset, Scale: 1, Disp: disp}
}

// rotateState returns the registers of the state in round t. Renaming replaces moving the words.
func rotateState(v []VecPhysical, t int) []VecPhysical {
	t %= 8
	return append(append([]VecPhysical{}, v[8-t:]...), v[:8-t]...)
}
