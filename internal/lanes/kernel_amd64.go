package lanes

// hash goes on with so many blocks of each lane's message. The names are called directly, and not through a
// variable, so that the compiler sees that nothing escapes.
func (k kernel) hash(state *[512]byte, from *[maxLanes]*byte, blocks int) {
	switch k {
	case x4:
		sha512x4(state, from, blocks)
	case x8:
		sha512x8(state, from, blocks)
	case x16:
		sha256x16(state, from, blocks)
	}
}
