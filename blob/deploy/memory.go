package deploy

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

// memory finds out what devices hold, and keeps it in Options.State. A failure to keep it costs a scan the next time, and
// no job.
type memory struct{ *Options }

// device returns the name that f's device is remembered by, if anything is remembered at all.
func (m memory) device(f *blockdev.File) (name string, ok bool) {
	if m.State == "" {
		return "", false
	}
	name, err := f.Identity()
	m.check(err)
	return name, err == nil
}

func (m memory) check(err error) {
	if err != nil {
		m.note(NotRemembered{err})
	}
}

// contentOf tells whether a device still holds what it held, when it was cut as x is.
func contentOf(f *blockdev.File, x *blob.Index) known.Content {
	return known.Content{Size: f.Size(), Filesystem: disk.FilesystemIdentity(f), Algorithm: x.Algorithm(), Params: x.Params()}
}

// recall returns the index of what f is thought to hold, cut as x is, or nil.
func (m memory) recall(f *blockdev.File, x *blob.Index) *blob.Index {
	device, ok := m.device(f)
	if !ok {
		return nil
	}
	held := m.State.Recall(device, contentOf(f, x))
	if held == nil || !plausible(held, f) {
		return nil
	}
	return held
}

// plausible reads some chunks of x, and reports whether f holds most of them. If it does not, it was given other content,
// and is better scanned again than downloaded.
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
	if device, ok := m.device(f); ok && !m.ReadOnly {
		m.check(m.State.Remember(device, contentOf(f, x), x))
	}
}

// begin notes that x is being put onto a target in place, whose content is not what it was from now on.
func (m memory) begin(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	if device, ok := m.device(t.before); ok {
		m.check(m.State.Begin(device, known.Work{Index: m.Name, Digest: x.Digest(), Target: t.name, Begun: time.Now()}))
	}
}

// finish notes that a target in place holds x.
func (m memory) finish(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	m.remember(t.before, x)
	if device, ok := m.device(t.before); ok {
		m.check(m.State.Finish(device))
	}
}

// noteUnfinished notes the work that was begun on the target and not finished.
func (m memory) noteUnfinished(t *Target) {
	if !t.inPlace || m.ReadOnly {
		return
	}
	if device, ok := m.device(t.before); ok {
		if w := m.State.Unfinished(device); w != nil {
			m.note(Unfinished{t.name, *w})
		}
	}
}

// recallOrScan finds out what f holds, cut as x is: from memory, or by scanning it.
func (m memory) recallOrScan(ctx context.Context, name string, f *blockdev.File, x *blob.Index) (*blob.Index, error) {
	if held := m.recall(f, x); held != nil {
		return held, nil
	}
	return m.scan(ctx, name, f, dataSize(ctx, f, x), x)
}

// scan cuts and hashes the first n bytes of f, as x was, and remembers what they are.
func (m memory) scan(ctx context.Context, name string, f *blockdev.File, n int64, x *blob.Index) (*blob.Index, error) {
	o := scan.Like(x)
	o.Workers = m.Workers
	if m.Scanning != nil {
		progress, end := m.Scanning(name, n)
		defer end()
		o.Progress = progress
	}
	held, _, err := scan.Image(ctx, chunker.FromReaderAt(f, n), o)
	if err != nil {
		return nil, err
	}
	m.remember(f, held)
	return held, nil
}

// maxPadding is how many zeros behind an image are looked for in a seed.
const maxPadding = 1 << 20

// dataSize returns how many bytes of f are worth a look for x: all, or those of an image of x's size that zeros follow, as
// a copy through NBD has them. Without the zeros its last chunk is the image's.
func dataSize(ctx context.Context, f *blockdev.File, x *blob.Index) int64 {
	if f.Size() <= x.Size() || f.Size()-x.Size() > maxPadding {
		return f.Size()
	}
	if zeros, err := verify.Zeros(ctx, f, x.Size(), f.Size()); err != nil || !zeros {
		return f.Size()
	}
	return x.Size()
}

// learnTarget returns the index of what the target's name holds so far, as far as it can be known and is worth it; else
// nil. Beside other seeds the target is not scanned.
func (m memory) learnTarget(ctx context.Context, x *blob.Index, t *Target, seeded bool) *blob.Index {
	f := t.before
	if f == nil {
		return nil
	}
	if held := m.recall(f, x); held != nil {
		return held
	}
	n := dataSize(ctx, f, x)
	if seeded {
		if n < f.Size() && plausible(x, f) {
			return x
		}
		return nil
	}
	use, err := measureUse(ctx, x, f, n, m.Workers)
	if err != nil {
		return nil // it cannot be read, and will be written
	}
	m.note(Sampled{t.name, use, n})
	if use == 0 {
		return nil
	}
	held, err := m.scan(ctx, t.name, f, use, x)
	if err != nil {
		return nil
	}
	return held
}
