//go:build !cgo && (amd64 || arm64 || arm)

package confine

import "golang.org/x/sys/unix"

// threadCalls are denied because they also reach the threads of other processes. Go itself uses tgkill.
var threadCalls = []uint32{unix.SYS_TKILL}
