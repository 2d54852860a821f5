//go:build race

package verify

// raceDetector reports whether the tests are built with the race detector.
const raceDetector = true
