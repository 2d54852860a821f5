//go:build race

package verify

// raceDetector says whether the tests are built with the race detector.
const raceDetector = true
