// Command buzscan generates the kernel of internal/buzscan: a rolling hash in 16 lanes. Each lane scans its own
// stretch of the text, 16 bytes per turn.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

const (
	step   = 16 // bytes of each lane per turn
	window = 48 // bytes
	vector = 64 // bytes
)

// The four planes of the hash table fill z16 to z31: plane k has byte k of all 256 values.
var (
	// planes are the four planes of the hash table: plane k has byte k of all 256 values.
	planes = []VecPhysical{Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31}
	hash   = Z0
	factor = Z1
	limit  = Z2
	least  = Z3 // the least tested values of this turn
	bytes  = []VecPhysical{Z4, Z5, Z6, Z7}
	values = []VecPhysical{Z8, Z9, Z10, Z11}
	temp   = []VecPhysical{Z12, Z13, Z14, Z15}

	// Lanes 4g to 4g+3 begin at group[g], and at one, two and three strides after it.
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
	Doc("scan16 rolls the hash over 16 adjacent stretches of the text, of stride bytes each, a multiple of 16.",
		"It sets masks[i] to the lanes in which one of the 16 bytes from 16*i on ends a window that passes the test.",
		"It also reads the 48 bytes before the text. The ring is scratch space. It needs AVX-512 F, BW and VBMI.")
	Pragma("noescape")
	loadArguments()
	warmUp(order)
	Label("turn")
	VPTERNLOGD(Imm(0xff), least, least, least)
	for c := range loadBytes() {
		lookUpValues(order, bytes[c])
		for i, v := range values {
			rollHash(v, 4*c+i)
			testHash()
		}
	}
	VPCMPUD(Imm(2), limit, least, K1) // less or equal
	KMOVW(K1, EDX)
	MOVW(DX, Mem{Base: masks})
	ADDQ(Imm(2), masks)
	advance("turn", func() {
		CMPQ(previous, ringEnd)
		CMOVQEQ(ring, previous)
	})
	VZEROUPPER()
	RET()
	Generate()
}

// loadArguments loads the arguments into registers.
func loadArguments() {
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

// warmUp hashes the window before each stretch. No byte leaves the window, and no hash is tested.
func warmUp(order Mem) {
	VPXORD(hash, hash, hash)
	MOVQ(ring, previous)
	MOVQ(U32(window/step), turns)
	Label("warmup")
	for c := range loadBytes() {
		lookUpValues(order, bytes[c])
		for i, v := range values {
			VMOVDQU64(v, ringSlot(4*c+i))
			VPROLD(Imm(1), hash, hash)
			VPXORD(v, hash, hash)
		}
	}
	advance("warmup", func() {})
	MOVQ(ring, previous)
	MOVQ(stride, turns)
	SHRQ(Imm(4), turns)
}

// loadBytes loads 16 bytes of each lane: bytes[c] gets bytes 4c to 4c+3 of all lanes. Each vector is assembled from
// lanes j, 4+j, 8+j and 12+j, so that transposing within 128 bits leaves the lanes in order.
func loadBytes() []VecPhysical {
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

// lookUpValues looks up the table's values for 4 bytes of all lanes: values[i] gets the values for byte i. It looks
// up each byte of the values separately, in the lower and in the upper half of the table, and combines them.
func lookUpValues(order Mem, from VecPhysical) {
	VPSHUFB(order, from, from)
	VPMOVB2M(from, K1) // bytes in the upper half
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

// ringSlot returns the address in the ring of the values of position i of this turn, from 48 bytes ago.
func ringSlot(i int) Mem { return Mem{Base: previous, Disp: vector * i} }

// rollHash moves the window by a byte. The value of the byte that leaves the window must be rotated by 48, which
// equals 16.
func rollHash(value VecPhysical, i int) {
	VPROLD(Imm(window%32), ringSlot(i), temp[0])
	VMOVDQU64(value, ringSlot(i))
	VPROLD(Imm(1), hash, hash)
	VPTERNLOGD(Imm(0x96), value, temp[0], hash) // xor of the three
}

// testHash computes (h+1)*factor, and keeps the least value.
func testHash() {
	VPMULLD(factor, hash, temp[1])
	VPADDD(factor, temp[1], temp[1])
	VPMINUD(temp[1], least, least)
}

// advance moves on by one turn.
func advance(label string, wrap func()) {
	for _, p := range group {
		ADDQ(Imm(step), p)
	}
	ADDQ(U32(step*vector), previous)
	wrap()
	DECQ(turns)
	JNZ(LabelRef(label))
}
