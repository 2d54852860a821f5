//go:build !amd64

package lanes

func (k kernel) hashBlocks(*[512]byte, *[maxLanes]*byte, int) {
	panic("lanes: no kernel " + string(k) + " on this machine")
}
