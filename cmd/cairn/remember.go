package main

import (
	"context"
	"time"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/blob/verify"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed/known"
)

// defaultState is where is remembered what devices hold, unless --state says otherwise.
const defaultState = "/var/lib/cairn"

// memory remembers what devices hold. What it cannot keep costs a scan the next time, and no job.
type memory struct {
	dir    known.Dir
	quiet  bool // the user did not ask for it, so nothing is said when it does not work
	frozen bool // recall only
}

// device is the name that f's device is remembered by, if anything is remembered at all.
func (m memory) device(f *blockdev.File) (name string, ok bool) {
	if m.dir == "" {
		return "", false
	}
	name, err := f.Identity()
	m.worked(err)
	return name, err == nil
}

// worked says, unless nobody asked, that something could not be remembered.
func (m memory) worked(err error) {
	if err != nil && !m.quiet {
		say("warning: cannot remember what devices hold: %v", err)
	}
}

// contentOf is what tells whether a device still holds what it held, when it was cut as x is.
func contentOf(f *blockdev.File, x *blob.Index) known.Content {
	return known.Content{Size: f.Size(), Filesystem: disk.FilesystemIdentity(f), Algorithm: x.Algorithm(), Params: x.Params()}
}

// recall is what f is thought to hold, cut as x is, or nil.
func (m memory) recall(f *blockdev.File, x *blob.Index) *blob.Index {
	device, ok := m.device(f)
	if !ok {
		return nil
	}
	held := m.dir.Recall(device, contentOf(f, x))
	if held == nil || !plausible(held, f) {
		return nil
	}
	return held
}

// plausible looks at some chunks: when more than a few are not what they should be, the device was given
// other content, and is better scanned again than downloaded.
func plausible(x *blob.Index, f *blockdev.File) bool {
	const samples = 32
	looked, wrong := 0, 0
	for n := range samples {
		i := n * x.Len() / samples
		if x.Len() == 0 || x.IsZero(i) {
			continue
		}
		c := x.At(i)
		p := make([]byte, c.Size)
		k, _ := f.ReadAt(p, c.Offset)
		looked++
		if k < len(p) || x.Algorithm().Sum(p) != c.Digest {
			wrong++
		}
	}
	return wrong*4 <= looked
}

// remember keeps what f holds.
func (m memory) remember(f *blockdev.File, x *blob.Index) {
	if device, ok := m.device(f); ok && !m.frozen {
		m.worked(m.dir.Remember(device, contentOf(f, x), x))
	}
}

// begin notes that x is being put onto a target, whose content is not what it was from now on.
func (m memory) begin(f *blockdev.File, x *blob.Index, index, target string) {
	if device, ok := m.device(f); ok {
		m.worked(m.dir.Begin(device, known.Work{Index: index, Digest: x.Digest(), Target: target, Begun: time.Now()}))
	}
}

// finish notes that the target holds x.
func (m memory) finish(f *blockdev.File, x *blob.Index) {
	m.remember(f, x)
	if device, ok := m.device(f); ok {
		m.worked(m.dir.Finish(device))
	}
}

// unfinished is the work that was begun on f and not finished, or nil.
func (m memory) unfinished(f *blockdev.File) *known.Work {
	device, ok := m.device(f)
	if !ok {
		return nil
	}
	return m.dir.Unfinished(device)
}

// look finds out what f holds, cut as x is: from memory, or by scanning it.
func (m memory) look(ctx context.Context, name string, f *blockdev.File, x *blob.Index, o common) (*blob.Index, error) {
	if held := m.recall(f, x); held != nil {
		return held, nil
	}
	n := f.Size()
	if isPadded(ctx, f, x.Size()) {
		n = x.Size()
	}
	p := newProgress(o.progress, "scanning "+name, n)
	defer p.end()
	so := scan.Like(x)
	so.Workers = o.jobs
	so.Progress = func(s scan.Stats) { p.show(s.Size, "", s) }
	held, _, err := scan.Image(ctx, chunker.FromReaderAt(f, n), so)
	if err != nil {
		return nil, err
	}
	m.remember(f, held)
	return held, nil
}

// maxPadding is how many zeros behind an image are looked for in a seed.
const maxPadding = 1 << 20

// isPadded reports whether f is an image of n bytes and zeros, as far as its size tells: a copy through NBD. Without the
// zeros its last chunk is the image's.
func isPadded(ctx context.Context, f *blockdev.File, n int64) bool {
	if f.Size() <= n || f.Size()-n > maxPadding {
		return false
	}
	zeros, err := verify.Zeros(ctx, f, n, f.Size())
	return err == nil && zeros
}
