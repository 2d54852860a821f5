package deploy

import (
	"context"
	"time"

	"cairn/blob"
	"cairn/seed"
	"cairn/seed/known"
	"cairn/seed/learn"
)

// learner learns the content of the seeds and the target, and records the jobs on the target.
type learner struct {
	learn.Options
	job *Options
}

func (o *Options) newLearner() learner {
	return learner{learn.Options{
		Releases: o.Releases, State: o.State, ReadOnly: o.ReadOnly, Workers: o.Workers, Notes: o.Notes, Scanning: o.Scanning,
	}, o}
}

// learnSeeds returns the seeds with indexes of their content, cut as x is. An unreadable seed is left out.
func (l learner) learnSeeds(ctx context.Context, x *blob.Index, opened []learn.Opened) (usable []seed.Seed, err error) {
	for _, s := range opened {
		held, err := l.Index(ctx, s, x)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			l.job.emitNote(learn.SeedLeftOut{Seed: s.Name, Err: err})
		default:
			usable = append(usable, seed.Seed{Name: s.Name, Index: held, Data: s.File})
		}
	}
	return usable, nil
}

// learnTarget returns the index of the target's old content, or nil if it is unknown and a scan is not
// worth it. Without a record the target is not scanned if there are other seeds.
func (l learner) learnTarget(ctx context.Context, x *blob.Index, t *Target, seeded bool) *blob.Index {
	f := t.before
	if f == nil {
		return nil
	}
	if held := l.Recall(f, x); held != nil {
		return held
	}
	n := learn.DataSize(ctx, f, x)
	if seeded {
		if n < f.Size() && learn.HoldsMost(x, f) {
			return x
		}
		return nil
	}
	use, err := measureUse(ctx, x, f, n, l.Workers)
	if err != nil {
		return nil // unreadable content will be overwritten
	}
	l.job.emitNote(Sampled{t.name, use, n})
	if use == 0 {
		return nil
	}
	held, err := l.Scan(ctx, t.name, f, use, x)
	if err != nil {
		return nil
	}
	return held
}

// recordBegin records that the job on a target in place begins. The target's recorded content is void
// from then on.
func (l learner) recordBegin(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	if device, ok := l.DeviceName(t.before); ok {
		work := known.Work{Index: l.job.Name, Digest: x.Digest(), Target: t.name, Begun: time.Now()}
		l.NoteFailure(l.State.Begin(device, work))
	}
}

// recordDone records that a target in place holds x.
func (l learner) recordDone(t *Target, x *blob.Index) {
	if !t.inPlace {
		return
	}
	l.Remember(t.before, x)
	if device, ok := l.DeviceName(t.before); ok {
		l.NoteFailure(l.State.Finish(device))
	}
}

// noteUnfinished emits a note if an earlier job on the target did not finish.
func (l learner) noteUnfinished(t *Target) {
	if !t.inPlace || l.ReadOnly {
		return
	}
	if device, ok := l.DeviceName(t.before); ok {
		if w := l.State.Unfinished(device); w != nil {
			l.job.emitNote(Unfinished{t.name, *w})
		}
	}
}
