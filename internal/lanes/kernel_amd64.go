package lanes

// hashBlocks hashes the next blocks of each lane's message. It calls the kernels by name and not through a variable,
// so that the compiler sees that no argument escapes.
func (k kernel) hashBlocks(state *[512]byte, from *[maxLanes]*byte, blocks int) {
	switch k {
	case x4:
		sha512x4(state, from, blocks)
	case x8:
		sha512x8(state, from, blocks)
	case x16:
		sha256x16(state, from, blocks)
	}
}
