package keep

import (
	"bytes"
	"context"
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
	packs = map[pack.Pack]bool{}
	l, err := listerOf(dir)
	if err != nil {
		return nil, all, err
	}
	for o, err := range l.List(ctx, "") {
		if err != nil {
			return nil, all, fmt.Errorf("listing the packs in %v: %w", dir, err)
		}
		if id, ok := pack.ParseName(o.Name); ok {
			packs[pack.Pack{ID: id, Size: o.Size}] = true
			all.countObject(o)
		}
	}
	return packs, all, ctx.Err()
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
type markedPacks struct{ live, fading map[blob.Digest]bool }

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

// findPacks lists the packs and finds those to remove.
func (c *collect) findPacks(ctx context.Context, now time.Time) error {
	if c.options.Packs == nil {
		return nil
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
			c.packs = append(c.packs, o)
		}
	}
	return nil
}

// sparePacks takes the packs that a map names now out of the garbage.
func (c *collect) sparePacks() {
	c.packs = slices.DeleteFunc(c.packs, func(o store.Object) bool {
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
