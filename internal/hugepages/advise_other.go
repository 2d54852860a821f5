//go:build !linux || !(amd64 || arm64)

package hugepages

func affordable(int64) int64 { return 0 }

func advise([]byte) bool { return false }
