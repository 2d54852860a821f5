package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// isa holds the instructions on vectors of 64-bit or of 32-bit words.
type isa struct{ add, addConstant, rotate, shift, logic func(...Op) }

var (
	quads   = isa{VPADDQ, VPADDQ_BCST, VPRORQ, VPSRLQ, VPTERNLOGQ}
	doubles = isa{VPADDD, VPADDD_BCST, VPRORD, VPSRLD, VPTERNLOGD}
)

// Truth tables of VPTERNLOG.
const (
	xor3     = 0x96
	choose   = 0xca // the second operand where the first is set, else the third
	majority = 0xe8
)

// writeAVX512 writes the kernel for a function. The whole message schedule and state are in registers: 16 words, 8 of
// the state, and 8 temporary ones.
func writeAVX512(s sha, lanes int) {
	a := beginKernel(fmt.Sprintf("sha%dx%d", 64*s.word, lanes), lanes, "AVX-512 F and BW", s)
	words, state, temp := z[:16], z[16:24], z[24:]
	Label("block")
	do := quads
	if s.word == 8 {
		load8(a, words, temp, state)
	} else {
		do = doubles
		load16(a, words, temp)
	}
	VMOVDQU64(s.swap, temp[0])
	for _, w := range words {
		VPSHUFB(temp[0], w, w)
	}
	for i, v := range state {
		VMOVDQU64(Mem{Base: a.state, Disp: 64 * i}, v)
	}
	a.writeRounds(s, func(t int, k Mem, schedule bool) {
		s.round512(do, k, words[t], rotateState(state, t), temp)
		if schedule {
			s.schedule512(do, t, words, temp)
		}
	})
	for i, v := range state {
		do.add(Mem{Base: a.state, Disp: 64 * i}, v, v)
		VMOVDQU64(v, Mem{Base: a.state, Disp: 64 * i})
	}
	endKernel(a, s)
}

// round512 writes a round. The next round waits for the new e. So ch and sigma are added to d directly, and not as a
// part of h: this takes one more addition, in a shorter dependency chain.
func (s sha) round512(do isa, k Op, w Op, v, temp []VecPhysical) {
	a, b, c, d, e, f, g, h := v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]
	do.addConstant(k, w, temp[0])
	do.add(temp[0], h, h)
	s.rotations(do, s.big1, e, temp[1:4])
	do.add(h, d, d)
	VMOVDQA64(e, temp[4])
	do.logic(Imm(choose), g, f, temp[4])
	do.logic(Imm(xor3), temp[3], temp[2], temp[1])
	do.add(temp[4], d, d)
	do.add(temp[4], h, h)
	do.add(temp[1], d, d)
	do.add(temp[1], h, h)
	s.rotations(do, s.big0, a, temp[5:8])
	VMOVDQA64(a, temp[4])
	do.logic(Imm(xor3), temp[7], temp[6], temp[5])
	do.logic(Imm(majority), c, b, temp[4])
	do.add(temp[5], temp[4], temp[4])
	do.add(temp[4], h, h)
}

func (s sha) rotations(do isa, by [3]uint64, v VecPhysical, to []VecPhysical) {
	for i, n := range by {
		do.rotate(Imm(n), v, to[i])
	}
}

// schedule512 replaces word t by word t+16.
func (s sha) schedule512(do isa, t int, words, temp []VecPhysical) {
	w := words[t]
	small := func(by [3]uint64, v VecPhysical, to []VecPhysical) {
		do.rotate(Imm(by[0]), v, to[0])
		do.rotate(Imm(by[1]), v, to[1])
		do.shift(Imm(by[2]), v, to[2])
	}
	small(s.small0, words[(t+1)%16], temp[1:4])
	do.add(words[(t+9)%16], w, w)
	do.logic(Imm(xor3), temp[3], temp[2], temp[1])
	small(s.small1, words[(t+14)%16], temp[5:8])
	do.add(temp[1], w, w)
	do.logic(Imm(xor3), temp[7], temp[6], temp[5])
	do.add(temp[5], w, w)
}

// load8 loads a block of 8 messages: words[i] gets word i of all of them.
func load8(a arguments, words, temp, more []VecPhysical) {
	for half := range 2 {
		w := words[8*half:][:8]
		for lane, v := range w {
			VMOVDQU64(a.blockOf(RDX, lane, 64*half), v)
		}
		for i := 0; i < 8; i += 2 { // pairs of lanes: temp[i] has the even words, temp[i+1] the odd ones
			VPUNPCKLQDQ(w[i+1], w[i], temp[i])
			VPUNPCKHQDQ(w[i+1], w[i], temp[i+1])
		}
		for odd := range 2 { // 4x4 pairs: quarter i of each vector goes to vector i, in two steps
			const even, uneven = 0x88, 0xdd // quarters 0 and 2, or 1 and 3, of each of two vectors
			VSHUFI64X2(Imm(even), temp[2+odd], temp[odd], more[0])
			VSHUFI64X2(Imm(uneven), temp[2+odd], temp[odd], more[1])
			VSHUFI64X2(Imm(even), temp[6+odd], temp[4+odd], more[2])
			VSHUFI64X2(Imm(uneven), temp[6+odd], temp[4+odd], more[3])
			VSHUFI64X2(Imm(even), more[2], more[0], w[odd])
			VSHUFI64X2(Imm(even), more[3], more[1], w[2+odd])
			VSHUFI64X2(Imm(uneven), more[2], more[0], w[4+odd])
			VSHUFI64X2(Imm(uneven), more[3], more[1], w[6+odd])
		}
	}
}

// load16 loads a block of 16 messages: words[i] gets word i of all of them. Vector j of each quarter of the block is
// assembled from lanes j, 4+j, 8+j and 12+j, so that transposing within 128 bits leaves the lanes in order.
func load16(a arguments, words, temp []VecPhysical) {
	for j := range 4 {
		for quarter := range 4 {
			VMOVDQU(a.blockOf(RDX, j, 16*quarter), x[4*quarter+j])
		}
		for group := 1; group < 4; group++ {
			for quarter := range 4 {
				v := words[4*quarter+j]
				VINSERTI32X4(Imm(uint64(group)), a.blockOf(RDX, 4*group+j, 16*quarter), v, v)
			}
		}
	}
	for quarter := range 4 {
		transpose4(words[4*quarter:][:4], temp)
	}
}

// transpose4 transposes 4x4 words of 32 bits within each 128 bits of w.
func transpose4(w, temp []VecPhysical) {
	VPUNPCKLDQ(w[1], w[0], temp[0])
	VPUNPCKHDQ(w[1], w[0], temp[1])
	VPUNPCKLDQ(w[3], w[2], temp[2])
	VPUNPCKHDQ(w[3], w[2], temp[3])
	VPUNPCKLQDQ(temp[2], temp[0], w[0])
	VPUNPCKHQDQ(temp[2], temp[0], w[1])
	VPUNPCKLQDQ(temp[3], temp[1], w[2])
	VPUNPCKHQDQ(temp[3], temp[1], w[3])
}
