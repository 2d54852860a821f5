package deploy

import "cairn/seed/known"

// Note is something that happened on the way and does not end the job: one of the types of this file, or
// release.AttributesLost.
type Note any

// Waiting means that the claim waits for other programs, or went on without something. Text is blockdev's.
type Waiting struct{ Text string }

// SeedFound tells what the name of a seed stands for on this machine, where that is not plain.
type SeedFound struct{ Seed, Is string }

// SeedLeftOut means that a seed cannot be read.
type SeedLeftOut struct {
	Seed string
	Err  error
}

// IndexLeftOut means that the index of a seed cannot be used, and the seed is scanned.
type IndexLeftOut struct {
	Seed string
	Err  error
}

// NotRemembered means that Options.State could not be read or changed.
type NotRemembered struct{ Err error }

// Unfinished means that an earlier job on the target did not end, and this one goes on.
type Unfinished struct {
	Target string
	known.Work
}

// Sampled tells that the target's old content is unknown, and that samples led to a scan of its first Scan bytes out of
// Size, or to none.
type Sampled struct {
	Target     string
	Scan, Size int64
}

// OldPartitions means that the kernel goes on with the partitions that a disk had before.
type OldPartitions struct {
	Target, Path string
	Err          error
}
