package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const vector = 32 // bytes of an AVX2 vector

// writeAVX2 writes SHA-512 in 4 lanes. AVX2 has 16 registers, so the message schedule is on the stack. It has no
// rotation and no three-way logic, so it gains less.
func writeAVX2(s sha) {
	a := beginKernel("sha512x4", 4, "AVX2", s)
	frame := AllocLocal(17 * vector)
	words := R8
	LEAQ(frame, words)
	ADDQ(Imm(vector-1), words)
	ANDQ(I32(-vector), words) // aligned vectors do not straddle cache lines
	word := func(t int) Mem { return Mem{Base: words, Disp: vector * (t % 16)} }
	state, temp := y[:8], y[8:]
	for i, v := range state {
		VMOVDQU(Mem{Base: a.state, Disp: vector * i}, v)
	}
	Label("block")
	load4(a, s.swap, word, temp)
	a.writeRounds(s, func(t int, k Mem, schedule bool) {
		s.round2(k, word(t), rotateState(state, t), temp)
		if schedule {
			s.schedule2(t, word, temp)
		}
	})
	for i, v := range state {
		VPADDQ(Mem{Base: a.state, Disp: vector * i}, v, v)
		VMOVDQU(v, Mem{Base: a.state, Disp: vector * i})
	}
	endKernel(a, s)
}

// round2 writes a round, which leaves the added word in temp[7].
func (s sha) round2(k, w Mem, v, temp []VecPhysical) {
	a, b, c, d, e, f, g, h := v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]
	VPBROADCASTQ(k, temp[0])
	VMOVDQU(w, temp[7])
	VPADDQ(temp[7], temp[0], temp[0])
	VPADDQ(temp[0], h, h)
	rotations2(s.big1[:], e, temp[1:4])
	VPXOR(g, f, temp[4]) // ch = ((f ^ g) & e) ^ g
	VPAND(e, temp[4], temp[4])
	VPXOR(g, temp[4], temp[4])
	VPADDQ(temp[1], h, h)
	VPADDQ(temp[4], h, h)
	VPADDQ(h, d, d)
	rotations2(s.big0[:], a, temp[1:4])
	VPXOR(b, a, temp[4]) // maj = ((a ^ b) & (b ^ c)) ^ b
	VPXOR(c, b, temp[5])
	VPAND(temp[5], temp[4], temp[4])
	VPXOR(b, temp[4], temp[4])
	VPADDQ(temp[1], h, h)
	VPADDQ(temp[4], h, h)
}

// schedule2 replaces word t, which round2 left in temp[7], by word t+16.
func (s sha) schedule2(t int, word func(int) Mem, temp []VecPhysical) {
	sum := temp[7]
	VPADDQ(word(t+9), sum, sum)
	VMOVDQU(word(t+1), temp[5])
	VMOVDQU(word(t+14), temp[6])
	small2(s.small0, temp[5], temp[1:4])
	VPADDQ(temp[1], sum, sum)
	small2(s.small1, temp[6], temp[1:4])
	VPADDQ(temp[1], sum, sum)
	VMOVDQU(sum, word(t))
}

// rotations2 sets temp[0] to the xor of the rotations of v by each of by.
func rotations2(by []uint64, v VecPhysical, temp []VecPhysical) {
	VPSRLQ(Imm(by[0]), v, temp[0])
	for i, n := range by {
		VPSLLQ(Imm(64-n), v, temp[1])
		if i > 0 {
			VPSRLQ(Imm(n), v, temp[2])
			VPXOR(temp[2], temp[0], temp[0])
		}
		VPXOR(temp[1], temp[0], temp[0])
	}
}

// small2 is rotations2 by the first two values of by, with a shift by the last.
func small2(by [3]uint64, v VecPhysical, temp []VecPhysical) {
	rotations2(by[:2], v, temp)
	VPSRLQ(Imm(by[2]), v, temp[2])
	VPXOR(temp[2], temp[0], temp[0])
}

// load4 loads a block of 4 messages: word(i) gets word i of all of them.
func load4(a arguments, swap Mem, word func(int) Mem, temp []VecPhysical) {
	const low, high = 0x20, 0x31 // halves of two vectors
	for quarter := range 4 {
		for lane, v := range temp[:4] {
			VMOVDQU(a.blockOf(RDX, lane, vector*quarter), v)
		}
		VPUNPCKLQDQ(temp[1], temp[0], temp[4])
		VPUNPCKHQDQ(temp[1], temp[0], temp[5])
		VPUNPCKLQDQ(temp[3], temp[2], temp[6])
		VPUNPCKHQDQ(temp[3], temp[2], temp[7])
		VPERM2I128(Imm(low), temp[6], temp[4], temp[0])
		VPERM2I128(Imm(low), temp[7], temp[5], temp[1])
		VPERM2I128(Imm(high), temp[6], temp[4], temp[2])
		VPERM2I128(Imm(high), temp[7], temp[5], temp[3])
		for i, v := range temp[:4] {
			VPSHUFB(swap, v, v)
			VMOVDQU(v, word(4*quarter+i))
		}
	}
}
