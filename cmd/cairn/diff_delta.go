package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/delta"
	"cairn/blob/delta/apply"
	"cairn/blob/delta/deltadir"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/seed"
	"cairn/store"
	"cairn/store/supply"
)

// States of a delta in the output of diff --json.
const (
	deltaMade      = "made"
	deltaEstimated = "estimated"
	deltaNone      = "none"
)

// diffDelta is what an update downloads with a delta. Bytes and requests include the list of deltas, the delta's table,
// and the chunks that come from the store.
type diffDelta struct {
	State       string `json:"state"`
	Old         string `json:"old,omitempty"` // digest of the index of the delta's old image
	Bytes       int64  `json:"bytes"`
	Requests    int64  `json:"requests"`
	Chunks      int    `json:"chunks"`                            // that are made from the delta
	Sampled     int    `json:"sampled_chunks,omitempty"`          // estimated: the new chunks that were encoded
	Error       int64  `json:"standard_error,omitempty"`          // estimated: of Bytes
	SampleBytes int64  `json:"sample_downloaded_bytes,omitempty"` // estimated: read from the stores for this

	newChunks int
}

func (d *diffDelta) row() []string {
	row := []string{"  with a delta", plaintext.Size(d.Bytes), "", countRequests(d.Requests)}
	switch d.State {
	case deltaNone:
		return []string{"  with a delta", "none"}
	case deltaEstimated:
		row[3] += fmt.Sprintf(", estimated ± %s from %d of %s (read for this: %s)", plaintext.Size(d.Error),
			d.Sampled, plaintext.Count(int64(d.newChunks), "chunk"), plaintext.Size(d.SampleBytes))
	default:
		row[3] += fmt.Sprintf(", %s made with bytes of the image %s", plaintext.Count(int64(d.Chunks), "chunk"), d.Old[:12])
	}
	return row
}

func countRequests(n int64) string { return plaintext.Count(n, "request") }

// addDownload fills in what a machine that holds the old image downloads for the plan, and draws it.
func (f *diffFlags) addDownload(ctx context.Context, plan *seed.Plan, p *picture, d *diffResult) error {
	x := plan.Index
	from, err := f.open(ctx, f.indexes[1], x, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	mapRequests, mapBytes := from.Downloaded()
	file, selection, err := findDelta(ctx, from.Beside(release.DeltaDir), plan)
	if err != nil {
		return err
	}
	if file != nil {
		defer file.Close()
	}
	requests, bytes := from.Downloaded()
	requests, bytes = requests-mapRequests, bytes-mapBytes // for the list of deltas and the delta's table
	q, err := p.quote(ctx, from)
	if err != nil {
		return fmt.Errorf("asking the store for sizes: %w", err)
	}
	cost := func(plan *seed.Plan) (requests, bytes int64) {
		requests, bytes = q.Cost(digestsOf(x, assemble.FetchCalls(plan, plan.At, assemble.Options{Far: from.Far()})))
		return requests + mapRequests, bytes + mapBytes
	}
	chunks, all := cost(plan)
	d.DownloadBytes, d.Downloads = &all, &chunks
	d.Delta = &diffDelta{State: deltaNone, Bytes: bytes + all, Requests: requests + chunks, newChunks: d.NewChunks}
	switch old := plan.Seeds[0].Index; {
	case f.estimate && (file == nil || file.Old != old.Digest()):
		return d.Delta.estimate(ctx, from, old, x, p.stored, all, chunks)
	case file == nil:
		return nil
	}
	with := plan.WithDelta(selection.Has)
	p.step, p.inDelta = with.At, selection.Size
	restRequests, restBytes := cost(with)
	*d.Delta = diffDelta{
		State: deltaMade, Old: file.Old.String(), Bytes: bytes + selection.Bytes() + restBytes,
		Requests: requests + int64(selection.Requests()) + restRequests, Chunks: selection.Len(),
	}
	return nil
}

// findDelta returns the delta that assemble uses for a plan, and the part of it that it reads; nil if it uses none.
func findDelta(ctx context.Context, dirs []store.Reader, plan *seed.Plan) (*apply.File, *apply.Selection, error) {
	fetch := plan.Totals().Fetch
	if !apply.IsWorth(fetch, 0) {
		return nil, nil, nil
	}
	for _, dir := range dirs {
		file, old, err := apply.Find(ctx, dir, plan.Index, plan.Seeds, func(costs int64) (bool, error) {
			return apply.IsWorth(fetch, costs), nil
		})
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case file != nil:
			selection := apply.Select(file, func(i int) bool { return plan.At(i).Kind == seed.Fetch },
				func(r delta.Range) bool { return old.Holds(r.Offset, r.Size) })
			if selection.Len() > 0 {
				return file, selection, nil
			}
			file.Close()
		case err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied) || errors.Is(err, apply.ErrNoBase):
		default:
			logf("no delta of %s is used: %v", dir, err)
		}
	}
	return nil, nil, nil
}

// estimate fills in what an update from old to x would download with a delta from old. The new chunks take all bytes in
// the store, and as many requests as there are chunks. If a delta would save nothing, d stays as it is.
func (d *diffDelta) estimate(ctx context.Context, from *supply.Supply, old, x *blob.Index, stored []int64, all, chunks int64) error {
	prepareHeap(old.Size())
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent)) // the encoder's tables are large and contain no pointers
	_, before := from.Downloaded()
	var images []*deltadir.Image
	for _, x := range []*blob.Index{old, x} {
		m, err := deltadir.OpenImage(ctx, x, deltadir.Source{Store: from, Remote: from.Far()})
		if err != nil {
			return err
		}
		defer m.Close()
		images = append(images, m)
	}
	p := newProgress(progressAuto, "estimating a delta", "", -1)
	e, err := deltadir.EstimateDelta(ctx, images[0], images[1], stored, deltadir.Options{
		Workers: runtime.GOMAXPROCS(0), Progress: func(done, _ int64) { p.show(done, "", nil) }})
	p.end()
	if err != nil {
		return fmt.Errorf("estimating a delta: %w", err)
	}
	_, after := from.Downloaded()
	list := int64(len(delta.EncodeList(x, []delta.Base{delta.NewBase(old, e.FileBytes, e.HeadBytes)})))
	bytes := list + e.FileBytes + e.LeftOut
	if e.Chunks == 0 || bytes >= all {
		return nil
	}
	*d = diffDelta{
		State: deltaEstimated, Old: old.Digest().String(), Bytes: bytes, Chunks: e.Chunks,
		Requests: 1 + int64(apply.CountRequests(apply.Sizes{File: e.FileBytes, Head: e.HeadBytes})) + chunks - int64(e.Chunks),
		Sampled:  e.Sampled, Error: e.Error, SampleBytes: after - before, newChunks: int(chunks),
	}
	return nil
}
