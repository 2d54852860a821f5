//go:build race

package need

// Race is true in a test binary with the race detector.
const Race = true
