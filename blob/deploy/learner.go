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

// learner learns the content of devices, and records it in Options.State. An error of State does not
// end the job; it costs a scan next time.
type learner struct{ *Options }

// deviceName returns the name of f's device in State. ok is false without a State or without a name.
func (l learner) deviceName(f *blockdev.File) (name string, ok bool) {
	if l.State == "" {
		return "", false
	}
	name, err := f.Identity()
	l.noteFailure(err)
	return name, err == nil
}

func (l learner) noteFailure(err error) {
	if err != nil {
		l.emitNote(NotRemembered{err})
	}
}

// contentOf returns the identity of f's content, cut as x is. State returns a record only for an equal
// identity.
func contentOf(f *blockdev.File, x *blob.Index) known.Content {
	return known.Content{Size: f.Size(), Filesystem: disk.FilesystemIdentity(f), Algorithm: x.Algorithm(), Params: x.Params()}
}

// recallIndex returns the recorded index of f's content, cut as x is, or nil.
func (l learner) recallIndex(f *blockdev.File, x *blob.Index) *blob.Index {
	device, ok := l.deviceName(f)
	if !ok {
		return nil
	}
	held := l.State.Recall(device, contentOf(f, x))
	if held == nil || !holdsMost(held, f) {
		return nil
	}
	return held
}

// holdsMost hashes up to 32 chunks of x in f, and reports whether at least three in four match. If they
// do not, f has other content by now, and a scan costs less than the downloads.
func holdsMost(x *blob.Index, f *blockdev.File) bool {
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

// rememberIndex records x as the index of f's content.
func (l learner) rememberIndex(f *blockdev.File, x *blob.Index) {
	if device, ok := l.deviceName(f); ok && !l.ReadOnly {
		l.noteFailure(l.State.Remember(device, contentOf(f, x), x))
	}
}

// recordBegin records that the job on a target in place begins. The target's recorded content is void
// from then on.
func (l learner) recordBegin(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	if device, ok := l.deviceName(t.before); ok {
		l.noteFailure(l.State.Begin(device, known.Work{Index: l.Name, Digest: x.Digest(), Target: t.name, Begun: time.Now()}))
	}
}

// recordDone records that a target in place holds x.
func (l learner) recordDone(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	l.rememberIndex(t.before, x)
	if device, ok := l.deviceName(t.before); ok {
		l.noteFailure(l.State.Finish(device))
	}
}

// noteUnfinished emits a note if an earlier job on the target did not finish.
func (l learner) noteUnfinished(t *Target) {
	if !t.inPlace || l.ReadOnly {
		return
	}
	if device, ok := l.deviceName(t.before); ok {
		if w := l.State.Unfinished(device); w != nil {
			l.emitNote(Unfinished{t.name, *w})
		}
	}
}

// recallOrScan returns the index of f's content, cut as x is, from State or from a scan.
func (l learner) recallOrScan(ctx context.Context, name string, f *blockdev.File, x *blob.Index) (*blob.Index, error) {
	if held := l.recallIndex(f, x); held != nil {
		return held, nil
	}
	return l.scanAndRemember(ctx, name, f, dataSize(ctx, f, x), x)
}

// scanAndRemember cuts and hashes the first n bytes of f as x was, and records the index.
func (l learner) scanAndRemember(ctx context.Context, name string, f *blockdev.File, n int64, x *blob.Index) (*blob.Index, error) {
	o := scan.Like(x)
	o.Workers = l.Workers
	if l.Scanning != nil {
		progress, end := l.Scanning(name, n)
		defer end()
		o.Progress = progress
	}
	held, _, err := scan.Image(ctx, chunker.FromReaderAt(f, n), o)
	if err != nil {
		return nil, err
	}
	l.rememberIndex(f, held)
	return held, nil
}

// maxPadding limits how many zeros behind an image in a seed are recognised as padding.
const maxPadding = 1 << 20

// dataSize returns how many bytes of f to scan for x. This is all of f, or x's size if zeros follow
// there, as in a copy through NBD. Without the zeros the last chunk of f is the image's.
func dataSize(ctx context.Context, f *blockdev.File, x *blob.Index) int64 {
	if f.Size() <= x.Size() || f.Size()-x.Size() > maxPadding {
		return f.Size()
	}
	if zeros, err := verify.Zeros(ctx, f, x.Size(), f.Size()); err != nil || !zeros {
		return f.Size()
	}
	return x.Size()
}

// learnTarget returns the index of the target's old content, or nil if it is unknown and a scan is not
// worth it. Without a record the target is not scanned if there are other seeds.
func (l learner) learnTarget(ctx context.Context, x *blob.Index, t *Target, seeded bool) *blob.Index {
	f := t.before
	if f == nil {
		return nil
	}
	if held := l.recallIndex(f, x); held != nil {
		return held
	}
	n := dataSize(ctx, f, x)
	if seeded {
		if n < f.Size() && holdsMost(x, f) {
			return x
		}
		return nil
	}
	use, err := measureUse(ctx, x, f, n, l.Workers)
	if err != nil {
		return nil // unreadable content will be overwritten
	}
	l.emitNote(Sampled{t.name, use, n})
	if use == 0 {
		return nil
	}
	held, err := l.scanAndRemember(ctx, t.name, f, use, x)
	if err != nil {
		return nil
	}
	return held
}
