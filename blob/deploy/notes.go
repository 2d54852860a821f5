package deploy

import (
	"cairn/seed/known"
	"cairn/seed/learn"
)

// Note is an event that does not end the job: one of the types of this file, a learn.Note, or
// release.AttributesLost.
type Note = learn.Note

// Waiting reports that the claim waits for other programs, or continued without one of its steps. Text
// is from blockdev.
type Waiting struct{ Text string }

// Unfinished reports that an earlier job on the target did not finish. This job continues it.
type Unfinished struct {
	Target string
	known.Work
}

// Sampled reports that the target's old content is unknown. After samples its first Scan bytes of Size
// are scanned.
type Sampled struct {
	Target     string
	Scan, Size int64
}

// OldPartitions reports that the kernel still uses the old partitions of a disk.
type OldPartitions struct {
	Target, Path string
	Err          error
}

// NoDelta reports that a directory of deltas has deltas to the image, but none that the job uses.
type NoDelta struct {
	Dir string
	Err error
}

// DeltaLeft reports that a job fetches the chunks that it did not make from a delta yet.
type DeltaLeft struct {
	Dir string
	Err error
}
