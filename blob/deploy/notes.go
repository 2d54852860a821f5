package deploy

import (
	"cairn/blob"
	"cairn/seed/known"
	"cairn/store/locate"
)

// Note is something that happened on the way and does not end the job: one of the types of this file.
type Note interface{ note() }

// Waiting means that the claim waits for other programs, or went on without something. Text is blockdev's.
type Waiting struct{ Text string }

// SeedFound tells what the name of a seed stands for on this machine, where that is not plain.
type SeedFound struct{ Seed, Is string }

// SeedLeftOut means that a seed cannot be read.
type SeedLeftOut struct {
	Seed string
	Err  error
}

// IndexLeftOut means that the index of a seed cannot be used, and the seed is scanned. With a nil Err it was read and
// does not fit: Held has another digest or other chunk sizes than the wanted index, or is of a directory tree.
type IndexLeftOut struct {
	Seed   string
	Index  locate.Location
	Err    error
	Held   *blob.Index
	Wanted *blob.Index
	Tree   bool
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

// AttributesLost means that a file could not be given all that the file had that it replaces, such as its owner.
type AttributesLost struct {
	Path string
	Err  error
}

// OldPartitions means that the kernel goes on with the partitions that a disk had before.
type OldPartitions struct {
	Target, Path string
	Err          error
}

func (Waiting) note()        {}
func (SeedFound) note()      {}
func (SeedLeftOut) note()    {}
func (IndexLeftOut) note()   {}
func (NotRemembered) note()  {}
func (Unfinished) note()     {}
func (Sampled) note()        {}
func (AttributesLost) note() {}
func (OldPartitions) note()  {}
