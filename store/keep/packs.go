package keep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/pack"
)

// ListPacks lists a directory of packs.
func ListPacks(ctx context.Context, dir store.Reader) (packs map[pack.Pack]bool, all Others, err error) {
	if _, err := listerOf(dir); err != nil {
		return nil, all, err
	}
	if packs, err = pack.List(ctx, dir); err != nil {
		return nil, all, err
	}
	for p := range packs {
		all.countObject(store.Object{Size: p.Size})
	}
	return packs, all, nil
}

// MapOf returns the map of packs in a gc root, or nil if it has none.
func MapOf(r *gcroot.Root) (*pack.Map, error) {
	if len(r.Map) == 0 {
		return nil, nil
	}
	m, err := pack.DecodeMap(bytes.NewReader(r.Map), r.Index)
	if err != nil {
		return nil, fmt.Errorf("the gc root of %s: %w: %w", r.Name, gcroot.ErrInvalid, err)
	}
	return m, nil
}

// CollectedPacks counts the packs that a Collect found and removed.
type CollectedPacks struct {
	Kept    Others `json:"kept"`
	Fading  Others `json:"fading"` // in maps of retired gc roots only
	Removed Others `json:"removed"`
	Young   Others `json:"young"` // in no map, kept for the grace
}

func (p CollectedPacks) bytes() int64 {
	return p.Kept.Bytes + p.Fading.Bytes + p.Removed.Bytes + p.Young.Bytes
}

// markedPacks are the packs that the maps of gc roots name.
type markedPacks struct {
	live, fading map[blob.Digest]bool
	expired      map[blob.Digest]bool // of retired gc roots whose grace has passed
}

// markPacks marks the packs in the map of a gc root. A map that cannot be decoded is an error, since its packs are unknown.
func (c *collect) markPacks(r *gcroot.Root, retired bool) error {
	m, err := MapOf(r)
	if err != nil || m == nil {
		return err
	}
	marked := c.marks.live
	if retired {
		marked = c.marks.fading
	}
	for _, p := range m.Packs() {
		marked[p.ID] = true
	}
	return nil
}

// markExpired marks the packs of expired gc roots. What cannot be read marks nothing: its packs are then removed in turns.
func (c *collect) markExpired(ctx context.Context) error {
	for _, e := range c.expired {
		r, err := c.records.Read(ctx, e, false)
		if errors.Is(err, gcroot.ErrInvalid) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if m, err := MapOf(r); err == nil && m != nil {
			for _, p := range m.Packs() {
				c.marks.expired[p.ID] = true
			}
		}
	}
	return ctx.Err()
}

// findPacks lists the packs and finds those to remove.
func (c *collect) findPacks(ctx context.Context, now time.Time) error {
	if c.options.Packs == nil {
		return nil
	}
	if err := c.markExpired(ctx); err != nil {
		return err
	}
	lister, err := listerOf(c.options.Packs)
	if err != nil {
		return err
	}
	for o, err := range lister.List(ctx, "") {
		if err != nil {
			return err
		}
		id, ok := pack.ParseName(o.Name)
		switch {
		case !ok:
			c.report.Foreign.countObject(o)
		case c.marks.live[id]:
			c.report.Packs.Kept.countObject(o)
		case c.marks.fading[id]:
			c.report.Packs.Fading.countObject(o)
		case c.isYoung(o.Modified, now):
			c.report.Packs.Young.countObject(o)
		default:
			c.report.Packs.Removed.countObject(o)
			if c.marks.expired[id] {
				c.known = append(c.known, o)
			} else {
				c.packs = append(c.packs, o)
			}
		}
	}
	return nil
}

// removeKnown removes the packs that only expired gc roots have named, in pack turns: publishers go on meanwhile.
func (c *collect) removeKnown(ctx context.Context, from store.Remover) error {
	for len(c.known) > 0 {
		turn, err := c.records.PackTurn(ctx)
		if err != nil {
			return err
		}
		err = c.removeInPackTurn(ctx, turn, from)
		if err := errors.Join(err, turn.End(ctx)); err != nil {
			return err
		}
		if err := pauseBetween(ctx, len(c.known)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *collect) removeInPackTurn(ctx context.Context, turn *gcroot.Turn, from store.Remover) error {
	s, err := c.beginSweep(ctx, turn)
	if err != nil {
		return err
	}
	n, err := s.remove(ctx, from, len(c.known), func(i int) string { return c.known[i].Name })
	c.known = c.known[n:]
	return err
}

// sparePacks takes the packs that a map names now out of the garbage.
func (c *collect) sparePacks() {
	c.packs, c.known = c.sparePacksOf(c.packs), c.sparePacksOf(c.known)
}

func (c *collect) sparePacksOf(packs []store.Object) []store.Object {
	return slices.DeleteFunc(packs, func(o store.Object) bool {
		id, _ := pack.ParseName(o.Name)
		switch {
		case c.marks.live[id]:
			c.report.Packs.Kept.countObject(o)
		case c.marks.fading[id]:
			c.report.Packs.Fading.countObject(o)
		default:
			return false
		}
		c.report.Packs.Removed.Objects--
		c.report.Packs.Removed.Bytes -= o.Size
		return true
	})
}
