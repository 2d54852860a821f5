package main

import (
	"fmt"
	"time"

	"cairn/blob/deploy"
	"cairn/blob/release"
	"cairn/blob/scan"
)

// logDeployNote prints a note of a deploy job.
func (f *seedFlags) logDeployNote(n deploy.Note) {
	switch n := n.(type) {
	case deploy.Waiting:
		logf("%s", n.Text)
	case deploy.Unfinished:
		logf("an assemble of %s onto %s, begun %s, was not finished; going on with the data there",
			n.Index, n.Target, n.Begun.Format(time.DateTime))
	case release.AttributesLost:
		warnAttributesLost(n.Path, n.Err)
	case deploy.OldPartitions:
		logf("warning: the kernel uses the old partitions of %s until 'blockdev --rereadpt %s' or a restart: %v",
			n.Target, n.Path, n.Err)
	case deploy.NoDelta:
		logf("no delta of %s is used: %v", n.Dir, n.Err)
	case deploy.DeltaLeft:
		logf("warning: the delta of %s is not used further: %v", n.Dir, n.Err)
	case deploy.Sampled: // showScan shows the scan
	default:
		f.logSeedNote(n)
	}
}

// warnAttributesLost reports the attributes of a replaced file that the new file at path does not have.
func warnAttributesLost(path string, lost error) {
	logf("warning: %s could not be given all attributes of the file that it replaces: %v", path, lost)
}

// showScan shows the progress of the scan of a seed or target.
func (f *common) showScan(name string, size int64) (func(scan.Stats), func()) {
	f.scans++
	p := newProgress(f.progress, "scanning "+name, fmt.Sprintf("Attempt 1: Chunking Seed %d ", f.scans), size)
	return func(s scan.Stats) { p.show(s.Size, "", s) }, p.end
}
