//go:build cgo

package confine

// threadCalls is empty in builds with C. There, Files signals the threads of the process with tkill.
var threadCalls []uint32
