// Package trust reads and writes what a publisher signs: releases, channels and key sets. All three are
// signed notes (c2sp.org/signed-note) with a JSON body. A note is opened with the keys of a machine; only
// then is its body parsed. What a machine does with an opened release is decided elsewhere.
package trust

import "time"

// A Release is a list of images that belong together.
type Release struct {
	Name       string    `json:"name"`                 // the product, such as example.com/os
	Version    string    `json:"version"`              // for people
	Serial     int64     `json:"serial"`               // for machines: releases are ordered by it alone
	MinSerial  int64     `json:"min_serial,omitempty"` // once this release is confirmed, none below is installed
	Compatible []string  `json:"compatible"`           // the hardware that it runs on
	Created    time.Time `json:"created"`
	Images     []Image   `json:"images"`
	Extra      []File    `json:"extra,omitempty"` // deltas and profiles: hints, as all companions
}

// An Image is one image of a release.
type Image struct {
	Role   string  `json:"role"`             // which slot takes it: root, boot, uki
	Order  int     `json:"order,omitempty"`  // images are put in place in this order; what boots comes last
	Target string  `json:"target,omitempty"` // TargetPartition, the default, or TargetFile
	Name   string  `json:"name,omitempty"`   // of a file
	Size   int64   `json:"size"`             // bytes
	SHA256 Sum     `json:"sha256,omitzero"`  // of all bytes of the image, for other programs; may be left out
	Index  File    `json:"index"`
	Verity *Verity `json:"verity,omitempty"`
}

// Targets of an image.
const (
	TargetPartition = "partition"
	TargetFile      = "file"
)

// A File is a file of the repository.
type File struct {
	Path   string `json:"path"` // relative to the directory of the note
	Size   int64  `json:"size"` // bytes
	SHA256 Sum    `json:"sha256"`
}

// Verity describes an image for dm-verity.
type Verity struct {
	RootHash      string `json:"root_hash"`                // lower-case hexadecimal
	PartitionUUID string `json:"partition_uuid,omitempty"` // that the partition gets
}

// A Channel tells a group of machines which release to run.
type Channel struct {
	Name     string    `json:"name"`    // the product
	Channel  string    `json:"channel"` // such as stable
	Serial   int64     `json:"serial"`  // of the channel file; it only grows
	NotAfter time.Time `json:"not_after"`
	Release  Pointer   `json:"release"`
	Rollout  Rollout   `json:"rollout"`
	Pause    bool      `json:"pause,omitempty"`
}

// A Pointer names a release file.
type Pointer struct {
	Serial int64 `json:"serial"`
	File
}

// A Rollout is the share of the machines that take the release.
type Rollout struct {
	Percent int    `json:"percent"` // 0 to 100
	Seed    string `json:"seed"`    // another seed selects other machines
}

// Sum is a SHA-256; in JSON lower-case hexadecimal.
type Sum [32]byte
