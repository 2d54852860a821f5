package release

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
)

const recordsSuffix = ".caroots"

// RecordsDir returns the location of the gc roots of a store: the directory NAME.caroots beside NAME.castr.
func RecordsDir(of locate.Location) (locate.Location, error) { return beside(of, recordsSuffix) }

// beside returns the location of a store's neighbour, which has the store's name with another suffix. It is not in the
// store, because casync's gc fails on foreign files.
func beside(of locate.Location, suffix string) (locate.Location, error) {
	of = of.TrimSlash()
	_, name, err := of.Split()
	if err != nil {
		return locate.Location{}, fmt.Errorf("there is nothing beside %s: %w", of, err)
	}
	return of.Beside(strings.TrimSuffix(name, storeSuffix) + suffix)
}

// NotRecorded reports that an index gets no gc root, because the records cannot be written. Gc does not manage the
// store, and would need to adopt the index first.
type NotRecorded struct{ Err error }

// ManagedError reports that gc manages a store, and that a publisher cannot announce itself there.
type ManagedError struct{ Records string }

func (e *ManagedError) Error() string {
	return fmt.Sprintf("gc manages the store (its gc roots are in %s), and a publisher there must be able to list and remove objects", e.Records)
}

// Unwrap returns errors.ErrUnsupported.
func (e *ManagedError) Unwrap() error { return errors.ErrUnsupported }

// OpenRecords opens the records of a store for publishing. They are nil if nothing can lie beside the store, or if
// publishers cannot announce themselves there and gc does not manage the store. If it does, the error is a
// *ManagedError.
func OpenRecords(ctx context.Context, a locate.Access, of locate.Location, o gcroot.Options) (*gcroot.Dir, error) {
	at, err := RecordsDir(of)
	if err != nil {
		return nil, nil //nolint:nilerr // such a store has no records
	}
	b, err := a.OpenBucket(at)
	if err != nil {
		return nil, fmt.Errorf("opening the gc roots %s: %w", at, err)
	}
	o.OneMachine = !at.Remote()
	records, err := gcroot.Open(b, o)
	if err == nil || !errors.Is(err, errors.ErrUnsupported) {
		return records, err
	}
	managed, err := gcroot.IsManaged(ctx, b)
	if managed {
		err = &ManagedError{at.String()}
	}
	return nil, err
}

// RecordName returns the name by which the gc root of an index calls it: its path from the directory of the store, or
// else its location.
func RecordName(of, index locate.Location) string {
	dir, _, err := of.TrimSlash().Split()
	if err != nil || dir.Remote() != index.Remote() {
		return index.String()
	}
	if at, local := index.Local(); local {
		return localRecordName(dir, at)
	}
	base := strings.TrimSuffix(dir.String(), "/") + "/"
	if name, below := strings.CutPrefix(index.String(), base); below && path.Clean("/"+name) == "/"+name {
		return name
	}
	return index.String()
}

func localRecordName(dir locate.Location, index string) string {
	index = absolute(index)
	if base, local := dir.Local(); local {
		if name, err := filepath.Rel(absolute(base), index); err == nil && filepath.IsLocal(name) {
			return filepath.ToSlash(name)
		}
	}
	return index
}

// absolute returns the absolute path of a file, or the path itself if the working directory is unknown.
func absolute(name string) string {
	if full, err := filepath.Abs(name); err == nil {
		return full
	}
	return name
}

// announce announces the publisher, and declares that gc manages the store if it has no chunks yet.
func (p *Publisher) announce(ctx context.Context, to store.Bucket) error {
	if p.records == nil {
		return nil
	}
	lease, err := p.records.Lease(ctx)
	if errors.Is(err, store.ErrDenied) || errors.Is(err, errors.ErrUnsupported) {
		if managed, managedErr := p.records.IsManaged(ctx); managedErr == nil && !managed {
			p.notes(NotRecorded{err})
			p.records = nil
			return nil
		}
	}
	if err != nil {
		return err
	}
	p.lease = lease
	if lease.Listing.Managed || len(lease.Listing.Roots) > 0 {
		return nil
	}
	if empty, err := isEmpty(ctx, to); err != nil || !empty {
		return err
	}
	return p.records.Manage(ctx)
}

// isEmpty reports whether a bucket has no objects. It is false if that cannot be known.
func isEmpty(ctx context.Context, b store.Bucket) (bool, error) {
	lister, lists := store.As[store.Lister](b)
	if !lists {
		return false, nil
	}
	for _, err := range lister.List(ctx, "") {
		if errors.Is(err, store.ErrDenied) {
			err = nil
		}
		return false, err
	}
	return true, ctx.Err()
}

// record writes the gc root of an index whose chunks are durable. When it returns nil, gc keeps all of them. If the
// lease was not in force all the time, it takes a new one and asks the store for each chunk again; a missing one is
// a *VanishedError.
func (p *Publisher) record(ctx context.Context, x *blob.Index) error {
	if p.records == nil {
		return nil
	}
	r := &gcroot.Root{Name: p.name, Published: p.lease.Now(), Index: x}
	if _, err := p.records.Write(ctx, r); err != nil {
		return err
	}
	for {
		err := p.lease.Check(ctx)
		if !errors.Is(err, gcroot.ErrLapsed) {
			return err
		}
		if err := p.renewLease(ctx); err != nil {
			return err
		}
		if err := p.checkAll(ctx, x); err != nil {
			return err
		}
	}
}

func (p *Publisher) renewLease(ctx context.Context) error {
	_ = p.lease.End(ctx) // what is left of it expires
	lease, err := p.records.Lease(ctx)
	if err != nil {
		return err
	}
	p.lease = lease
	return nil
}

// checkAll asks the store for each chunk of an index. A missing one is a *VanishedError.
func (p *Publisher) checkAll(ctx context.Context, x *blob.Index) error {
	seen := blob.NewTable(x)
	const atOnce = 256
	for lo := 0; lo < x.Len(); lo += atOnce {
		var some []blob.Digest
		for i, c := range x.Range(lo, min(lo+atOnce, x.Len())) {
			if seen.Find(c.Digest) == i {
				some = append(some, c.Digest)
			}
		}
		if err := p.checkHeld(ctx, some); err != nil {
			return vanished(err)
		}
	}
	return ctx.Err()
}

// endLease withdraws the publisher's announcement. A failure does no harm, because the announcement expires.
func (p *Publisher) endLease(ctx context.Context) {
	if p.lease == nil {
		return
	}
	_ = p.lease.End(ctx)
	p.lease = nil
}
