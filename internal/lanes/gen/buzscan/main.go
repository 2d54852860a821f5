// Command buzscan writes the kernel of internal/buzscan: a rolling hash in 16 lanes, each of which goes through
// its own stretch of the text, 16 bytes a turn.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const (
	turn   = 16 // bytes of each lane
	window = 48 // bytes
	vector = 64 // bytes
)

// The four planes of the hash table fill z16 to z31: plane k has byte k of all 256 values.
var (
	planes = []VecPhysical{Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31}
	hash   = Z0
	factor = Z1
	limit  = Z2
	least  = Z3 // of the tested values of this turn
	bytes  = []VecPhysical{Z4, Z5, Z6, Z7}
	values = []VecPhysical{Z8, Z9, Z10, Z11}
	temp   = []VecPhysical{Z12, Z13, Z14, Z15}

	// The stretches of lanes 4g to 4g+3 begin at group[g], one, two and three strides behind it.
	group                   = []Register{RAX, R8, R9, R10}
	stride, stride3         = RBX, R11
	turns, masks            = RCX, RDI
	ring, ringEnd, previous = RSI, R13, R12
)

func main() {
	order := GLOBL("byPosition", RODATA|NOPTR)
	for i := range vector { // within 16 bytes, from 4 positions of 4 lanes to 4 lanes of 4 positions
		DATA(i, U8(i%4*4+i/4%4))
	}
	TEXT("scan16", NOSPLIT, "func(text *byte, stride int, planes *[1024]byte, factor, limit uint32, "+
		"ring *[3136]byte, masks *uint16)")
	Doc("scan16 rolls the hash over 16 stretches of the text, one behind the other, of stride bytes, a multiple of 16.",
		"It sets masks[i] to the lanes in which one of the 16 bytes from 16*i on ends a window that passes the test.",
		"The 48 bytes before the text are read as well. The ring is room for it to work in. It needs AVX-512 F, BW",
		"and VBMI.")
	Pragma("noescape")
	begin()
	warmUp(order)
	Label("turn")
	VPTERNLOGD(Imm(0xff), least, least, least)
	for c := range load() {
		lookUp(order, bytes[c])
		for i, v := range values {
			roll(v, 4*c+i)
			test()
		}
	}
	VPCMPUD(Imm(2), limit, least, K1) // less or equal
	KMOVW(K1, EDX)
	MOVW(DX, Mem{Base: masks})
	ADDQ(Imm(2), masks)
	step("turn", func() {
		CMPQ(previous, ringEnd)
		CMOVQEQ(ring, previous)
	})
	VZEROUPPER()
	RET()
	Generate()
}

// begin brings the arguments into registers.
func begin() {
	table := Load(Param("planes"), RDX).(Register)
	for i, v := range planes {
		VMOVDQU64(Mem{Base: table, Disp: vector * i}, v)
	}
	VPBROADCASTD(Load(Param("factor"), EDX), factor)
	VPBROADCASTD(Load(Param("limit"), EDX), limit)
	Load(Param("text"), group[0])
	Load(Param("stride"), stride)
	Load(Param("ring"), ring)
	Load(Param("masks"), masks)
	SUBQ(Imm(window), group[0])
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	for g := range 3 {
		LEAQ(Mem{Base: group[g], Index: stride, Scale: 4}, group[g+1])
	}
	ADDQ(Imm(vector-1), ring)
	ANDQ(I32(-vector), ring) // aligned vectors do not straddle cache lines
	LEAQ(Mem{Base: ring, Disp: window * vector}, ringEnd)
}

// warmUp hashes the window before each stretch: nothing leaves it, and nothing is tested.
func warmUp(order Mem) {
	VPXORD(hash, hash, hash)
	MOVQ(ring, previous)
	MOVQ(U32(window/turn), turns)
	Label("warmup")
	for c := range load() {
		lookUp(order, bytes[c])
		for i, v := range values {
			VMOVDQU64(v, slot(4*c+i))
			VPROLD(Imm(1), hash, hash)
			VPXORD(v, hash, hash)
		}
	}
	step("warmup", func() {})
	MOVQ(ring, previous)
	MOVQ(stride, turns)
	SHRQ(Imm(4), turns)
}

// load reads 16 bytes of each lane: bytes[c] gets bytes 4c to 4c+3 of all lanes. They are put together from lanes
// j, 4+j, 8+j and 12+j, so that transposing within 128 bits leaves the lanes in order.
func load() []VecPhysical {
	low := []VecPhysical{X4, X5, X6, X7}
	lane := func(g, j int) Mem {
		switch j {
		case 0:
			return Mem{Base: group[g]}
		case 3:
			return Mem{Base: group[g], Index: stride3, Scale: 1}
		}
		return Mem{Base: group[g], Index: stride, Scale: uint8(j)}
	}
	for j, v := range bytes {
		VMOVDQU(lane(0, j), low[j])
		for g := 1; g < 4; g++ {
			VINSERTI32X4(Imm(uint64(g)), lane(g, j), v, v)
		}
	}
	VPUNPCKLDQ(bytes[1], bytes[0], temp[0])
	VPUNPCKHDQ(bytes[1], bytes[0], temp[1])
	VPUNPCKLDQ(bytes[3], bytes[2], temp[2])
	VPUNPCKHDQ(bytes[3], bytes[2], temp[3])
	VPUNPCKLQDQ(temp[2], temp[0], bytes[0])
	VPUNPCKHQDQ(temp[2], temp[0], bytes[1])
	VPUNPCKLQDQ(temp[3], temp[1], bytes[2])
	VPUNPCKHQDQ(temp[3], temp[1], bytes[3])
	return bytes
}

// lookUp finds the table's values for 4 bytes of all lanes: values[i] gets those for byte i. It looks up each byte of
// the values by itself, in the lower and in the upper half of the table, and then puts them together.
func lookUp(order Mem, from VecPhysical) {
	VPSHUFB(order, from, from)
	VPMOVB2M(from, K1) // in the upper half
	for k, v := range values {
		plane := planes[4*k:][:4]
		VMOVDQA64(from, v)
		VPERMI2B(plane[1], plane[0], v)
		VMOVDQA64(from, temp[0])
		VPERMI2B(plane[3], plane[2], temp[0])
		VMOVDQU8(temp[0], K1, v)
	}
	VPUNPCKLBW(values[1], values[0], temp[0])
	VPUNPCKHBW(values[1], values[0], temp[1])
	VPUNPCKLBW(values[3], values[2], temp[2])
	VPUNPCKHBW(values[3], values[2], temp[3])
	VPUNPCKLWD(temp[2], temp[0], values[0])
	VPUNPCKHWD(temp[2], temp[0], values[1])
	VPUNPCKLWD(temp[3], temp[1], values[2])
	VPUNPCKHWD(temp[3], temp[1], values[3])
}

// slot is where the ring has the values of position i of this turn, 48 bytes ago.
func slot(i int) Mem { return Mem{Base: previous, Disp: vector * i} }

// roll moves the window by a byte: the value of the byte that leaves it has been rotated 48 times, which is 16.
func roll(value VecPhysical, i int) {
	VPROLD(Imm(window%32), slot(i), temp[0])
	VMOVDQU64(value, slot(i))
	VPROLD(Imm(1), hash, hash)
	VPTERNLOGD(Imm(0x96), value, temp[0], hash) // exclusive or of the three
}

// test finds (h+1)*factor, of which the least counts.
func test() {
	VPMULLD(factor, hash, temp[1])
	VPADDD(factor, temp[1], temp[1])
	VPMINUD(temp[1], least, least)
}

// step moves on by a turn.
func step(label string, wrap func()) {
	for _, p := range group {
		ADDQ(Imm(turn), p)
	}
	ADDQ(U32(turn*vector), previous)
	wrap()
	DECQ(turns)
	JNZ(LabelRef(label))
}
