package release

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
	"cairn/store/pack"
)

const recordsSuffix = ".caroots"

// RecordsDir returns the location of the gc roots of a store: the directory NAME.caroots beside NAME.castr. A store
// that is a symbolic link on this machine has those of its target, since its publishers share the chunks.
func RecordsDir(of locate.Location) (locate.Location, error) {
	return beside(resolveStore(of), recordsSuffix)
}

// resolveStore returns the location of the directory to which a symbolic link leads, or else the location itself. Links
// above it do not matter: what lies beside is the same.
func resolveStore(of locate.Location) locate.Location {
	at, local := of.TrimSlash().Local()
	if !local {
		return of
	}
	if info, err := os.Lstat(at); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return of
	}
	target, err := filepath.EvalSymlinks(at)
	if err != nil {
		return of
	}
	return locate.Path(target)
}

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

// RecordsOptions are the settings of OpenRecords.
type RecordsOptions struct {
	gcroot.Options
	Managed bool       // no records of a store that gc does not manage
	Notes   func(Note) // called with NotRecorded
}

// OpenRecords opens the records of a store for publishing. They are nil if nothing can lie beside the store, or if
// publishers cannot announce themselves there and gc does not manage the store. If it does, the error is a
// *ManagedError.
func OpenRecords(ctx context.Context, a locate.Access, of locate.Location, o RecordsOptions) (*gcroot.Dir, error) {
	at, err := RecordsDir(of)
	if err != nil {
		return nil, nil //nolint:nilerr // such a store has no records
	}
	if o.Managed {
		if managed, err := isManagedAt(ctx, a, at); err != nil || !managed {
			return nil, err
		}
	}
	b, err := a.OpenBucket(at)
	if isRefused(err) && !at.Remote() { // there is no such directory
		o.Notes(NotRecorded{err})
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the gc roots %s: %w", at, err)
	}
	o.OneMachine = !at.Remote()
	o.MayManage = func(ctx context.Context) (bool, error) { return hasNoPacks(ctx, a, of) }
	records, err := gcroot.Open(b, o.Options)
	if err == nil || !errors.Is(err, errors.ErrUnsupported) {
		return records, err
	}
	managed, err := gcroot.IsManaged(ctx, b)
	if managed {
		err = &ManagedError{at.String()}
	}
	return nil, err
}

// isManagedAt reports whether gc manages the store whose records are at a location.
func isManagedAt(ctx context.Context, a locate.Access, at locate.Location) (bool, error) {
	r, err := a.Open(at)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening the gc roots %s: %w", at, err)
	}
	defer store.Close(r)
	if at.Remote() {
		r = store.Retry(r, a.Retry)
	}
	return gcroot.IsManaged(ctx, r)
}

// RecordName returns the name by which the gc root of an index calls it: its path from the directory of the store, or
// else its location.
func RecordName(of, index locate.Location) string {
	dir, _, err := resolveStore(of).TrimSlash().Split()
	if at, local := index.Local(); local {
		return localRecordName(dir, at)
	}
	if err != nil || dir.Remote() != index.Remote() {
		return index.String()
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

// Recorder is a publisher's side of the records of a store: its lease, and the gc roots that it writes. Without
// records it does nothing.
type Recorder struct {
	ctx     context.Context // of the job, for End
	records *gcroot.Dir     // nil for none
	lease   *gcroot.Lease   // nil without records, and after its end
	to      store.Bucket
	packs   store.Reader // of the store; nil for none
	number  uint32       // of the next publication
	written []*record

	unrecorded *gcroot.Dir // of a store that gc did not manage, and whose records cannot be written
}

// record is a gc root of a publisher.
type record struct {
	root   *gcroot.Root
	number uint32       // of the publication
	entry  gcroot.Entry // zero before it was written
}

// NewRecorder announces a publisher into the store to, so that gc removes nothing that the store holds from now on.
// If the store has no chunks yet, gc manages it from now on. records may be nil; notes is called with NotRecorded.
// End must be called.
func NewRecorder(ctx context.Context, records *gcroot.Dir, to store.Bucket, notes func(Note)) (*Recorder, error) {
	r := &Recorder{ctx: ctx, records: records, to: to}
	if records == nil {
		return r, nil
	}
	lease, err := records.Lease(ctx)
	if isRefused(err) {
		if managed, managedErr := records.IsManaged(ctx); managedErr == nil && !managed {
			notes(NotRecorded{err})
			r.records, r.unrecorded = nil, records
			return r, nil
		}
	}
	if err != nil {
		return nil, err
	}
	r.lease, r.number = lease, lease.Listing.Next()
	if lease.Listing.Managed || len(lease.Listing.Roots) > 0 {
		return r, nil
	}
	empty, err := isEmpty(ctx, to)
	if err == nil && empty {
		empty, err = records.MayManage(ctx)
	}
	if err == nil && empty {
		err = records.Manage(ctx)
	}
	if err != nil {
		r.End()
		return nil, err
	}
	return r, nil
}

// Errors of checkKept.
var (
	errNotKept = errors.New("it has no gc root, so gc may have removed some")
	errPacked  = errors.New("it was published in packs, so there may be no single ones")
)

// checkKept returns an error unless gc has removed no chunk of an index, and removes none while the lease is in force.
// A gc root without a map of packs that was listed under the lease says so, even a retired one: it is removed before its
// chunks, and these only after the lease. A store that gc does not manage has lost nothing to gc. The error is errNotKept,
// or errPacked if the chunks may be in packs only.
func (r *Recorder) checkKept(ctx context.Context, index blob.Digest) error {
	if r.records == nil {
		return nil
	}
	packed := false
	for _, e := range r.lease.Listing.Roots {
		if e.Index != index {
			continue
		}
		root, err := r.records.Read(ctx, e, false)
		switch {
		case errors.Is(err, store.ErrNotFound): // another publisher has removed a duplicate
		case err != nil:
			return err
		case len(root.Map) == 0:
			return nil
		default:
			packed = true
		}
	}
	if packed {
		return errPacked
	}
	managed, err := r.records.IsManaged(ctx) // this publisher may have declared it after the listing
	if err == nil && managed {
		err = errNotKept
	}
	return err
}

// isRefused reports whether a place cannot be written by this user, or cannot hold records.
func isRefused(err error) bool {
	return errors.Is(err, store.ErrDenied) || errors.Is(err, errors.ErrUnsupported) || errors.Is(err, unix.EROFS)
}

// hasNoPacks reports whether a store has no packs. It is false if that cannot be known.
func hasNoPacks(ctx context.Context, a locate.Access, of locate.Location) (bool, error) {
	at, err := PackDir(of)
	if err != nil {
		return true, nil //nolint:nilerr // nothing can lie beside this store
	}
	b, err := a.Open(at)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening the packs %s: %w", at, err)
	}
	defer store.Close(b)
	return isEmpty(ctx, b)
}

// isEmpty reports whether a bucket has no objects. It is false if that cannot be known.
func isEmpty(ctx context.Context, b store.Reader) (bool, error) {
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

// Record writes the gc root of an index whose chunks are durable. packMap is the file of its map of packs; nil for none.
// When Record returns nil, gc keeps all of them. If the lease was not in force all the time, it takes a new one and asks
// the store for each chunk first; a missing one is a *VanishedError. So a gc root always has all its chunks.
func (r *Recorder) Record(ctx context.Context, name string, x *blob.Index, packMap []byte) error {
	if r.records == nil {
		return nil
	}
	w := &record{root: &gcroot.Root{Name: name, Published: r.lease.Now(), Index: x, Map: packMap}, number: r.number}
	r.number = max(r.number+1, r.number) // one publisher may record several indexes; the largest number has no next
	r.written = append(r.written, w)
	if err := r.sendInLease(ctx, func(ctx context.Context) error { return r.write(ctx, w) }); err != nil {
		return err
	}
	if err := r.confirm(ctx); err != nil {
		return err
	}
	if err := r.confirmPacks(ctx, w); !errors.Is(err, gcroot.ErrLapsed) {
		return err
	}
	return r.renewLease(ctx)
}

// confirmPacks looks whether the packs of a gc root are there, when no collector is removing packs. From then on gc sees
// the gc root, and keeps them. If one is missing, it retires the gc root, and the error is a *VanishedError.
func (r *Recorder) confirmPacks(ctx context.Context, w *record) error {
	m, err := decodeMap(w.root)
	if err != nil || m == nil {
		return err
	}
	if err := r.lease.AwaitPackTurns(ctx); err != nil {
		return err
	}
	err = checkPacks(ctx, r.packs, m.Packs())
	if errors.Is(err, store.ErrNotFound) {
		retired := r.lease.Do(ctx, func(ctx context.Context) error { return r.records.Retire(ctx, w.entry) })
		err = errors.Join(vanished(err), retired)
	}
	return err
}

// confirm looks whether the lease is there, which protects from a clock of the store that jumps.
func (r *Recorder) confirm(ctx context.Context) error {
	err := r.lease.Check(ctx)
	if errors.Is(err, gcroot.ErrLapsed) {
		return r.renewLease(ctx)
	}
	return err
}

func (r *Recorder) write(ctx context.Context, w *record) (err error) {
	w.entry, err = r.records.Write(ctx, w.root, w.number)
	return err
}

// Publish calls write, which makes an index visible whose gc root Record wrote. It ends the context of write early
// enough that no collector may take the index for absent meanwhile, and retire its gc root.
func (r *Recorder) Publish(ctx context.Context, write func(context.Context) error) error {
	if r.records == nil {
		if err := r.checkUnmanaged(ctx); err != nil {
			return err
		}
		if err := write(ctx); err != nil {
			return err
		}
		return r.checkUnmanaged(ctx)
	}
	if err := r.sendInLease(ctx, write); err != nil {
		return err
	}
	return r.confirm(ctx)
}

// checkUnmanaged returns a *ManagedError if gc manages a store now whose records this publisher cannot write. It may have
// removed chunks that the publisher had found.
func (r *Recorder) checkUnmanaged(ctx context.Context) error {
	if r.unrecorded == nil {
		return nil
	}
	managed, err := r.unrecorded.IsManaged(ctx)
	if err == nil && managed {
		err = &ManagedError{r.unrecorded.String()}
	}
	return err
}

// sendInLease calls send within the time of a lease.
func (r *Recorder) sendInLease(ctx context.Context, send func(context.Context) error) error {
	for {
		err := r.lease.Do(ctx, send)
		if !errors.Is(err, gcroot.ErrLapsed) {
			return err
		}
		if err := r.renewLease(ctx); err != nil {
			return err
		}
	}
}

// renewLease takes a new lease after the last one has lapsed. Chunks may have been removed in the meantime, and gc roots
// retired: it asks the store for all chunks, and writes gc roots again that are not live any more.
func (r *Recorder) renewLease(ctx context.Context) error {
	for {
		r.End() // what is left of the lease
		var err error
		if r.lease, err = r.records.Lease(ctx); err != nil {
			return err
		}
		if err := r.recordAgain(ctx); !errors.Is(err, gcroot.ErrLapsed) {
			return err
		}
	}
}

func (r *Recorder) recordAgain(ctx context.Context) error {
	for _, w := range r.written {
		if err := r.checkAll(ctx, w.root); err != nil {
			return errors.Join(err, r.forget(ctx, err))
		}
		isLive := func(e gcroot.Entry) bool { return e.Name == w.entry.Name && e.Retired.IsZero() }
		if w.entry.Name == "" || slices.ContainsFunc(r.lease.Listing.Roots, isLive) {
			continue
		}
		if err := r.lease.Do(ctx, func(ctx context.Context) error { return r.write(ctx, w) }); err != nil {
			return err
		}
	}
	for _, w := range r.written {
		if err := r.confirmPacks(ctx, w); err != nil {
			return err
		}
	}
	return r.lease.Check(ctx) // the listing and the answers about chunks count only if the lease was in force
}

// forget removes the gc roots of a publisher whose chunks have vanished: another publisher would take them for a proof that
// the chunks are there.
func (r *Recorder) forget(ctx context.Context, err error) error {
	if !hasVanished(err) {
		return nil
	}
	var failed error
	for _, w := range r.written {
		if w.entry.Name != "" {
			failed = errors.Join(failed, r.lease.Do(ctx, func(ctx context.Context) error { return r.records.Remove(ctx, w.entry) }))
		}
	}
	return failed
}

func hasVanished(err error) bool {
	_, is := errors.AsType[*VanishedError](err)
	return is
}

// checkAll asks a store for each chunk of a gc root, or for the pack that has it. A missing one is a *VanishedError.
func (r *Recorder) checkAll(ctx context.Context, root *gcroot.Root) error {
	x := root.Index
	isPacked := func(blob.Digest) bool { return false }
	m, err := decodeMap(root)
	if err != nil {
		return err
	}
	if m != nil {
		isPacked = func(d blob.Digest) bool { _, ok := m.Find(d); return ok }
		if err := checkPacks(ctx, r.packs, m.Packs()); err != nil {
			return vanished(err)
		}
	}
	chunks, seen := store.NewChunks(r.to, x.Algorithm()), blob.NewTable(x)
	const atOnce = 256
	for lo := 0; lo < x.Len(); lo += atOnce {
		var some []blob.Digest
		for i, c := range x.Range(lo, min(lo+atOnce, x.Len())) {
			if seen.Find(c.Digest) == i && !isPacked(c.Digest) {
				some = append(some, c.Digest)
			}
		}
		if err := checkHeld(ctx, chunks, some); err != nil {
			return vanished(err)
		}
	}
	return ctx.Err()
}

// checkPacks looks for packs in a directory. One that is absent or has another size is store.ErrNotFound.
func checkPacks(ctx context.Context, in store.Reader, packs []pack.Pack) error {
	if in == nil {
		return fmt.Errorf("the packs cannot be asked for: %w", errors.ErrUnsupported)
	}
	there, err := pack.List(ctx, in)
	if err != nil {
		return err
	}
	for _, p := range packs {
		if !there[p] {
			return fmt.Errorf("pack %s of %d bytes in %v: %w", p.Name(), p.Size, in, store.ErrNotFound)
		}
	}
	return nil
}

// End withdraws the lease. A failure does no harm, because the lease expires.
func (r *Recorder) End() {
	if r.lease != nil {
		_ = r.lease.End(r.ctx)
	}
	r.lease = nil
}
