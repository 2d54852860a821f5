package release

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
)

// Shelf is what gc keeps or removes as one, and in which order it was published. Indexes are one; releases are to be
// another.
type Shelf interface {
	// Items returns what is published, the oldest first, and the rest of what keeps chunks.
	Items(ctx context.Context) (published, orphans []Item, err error)
	// Remove removes items, and returns those that it removed. Their chunks stay for the grace of gc. An item that was
	// published since it was found, or again, stays. Remove waits until no publisher is at work, for at most the time
	// patience.
	Remove(ctx context.Context, items []Item, patience time.Duration) (removed []Item, err error)
}

// Indexes is the Shelf of the indexes that were published into a store.
type Indexes struct {
	Access  Access // to read the indexes
	Bucket  func(at locate.Location) (b store.Bucket, name string, err error)
	Store   locate.Location
	Records *gcroot.Dir
	// Elsewhere allows to look at and remove indexes that lie neither beside the store nor below. Who may write gc
	// roots chooses their names, so only a user's own choice allows it.
	Elsewhere bool
}

var _ Shelf = (*Indexes)(nil)

// Items implements Shelf. It reads the heads of all gc roots that are not retired. An orphan is of an index that is
// absent or replaced: a publisher that failed has left its gc root, or the index was removed by other means. Only an
// index beside the store or below can be known to be absent.
func (s *Indexes) Items(ctx context.Context) (published, orphans []Item, err error) {
	l, err := s.Records.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	all, err := ReadItems(ctx, s.Records, l)
	for _, item := range all {
		state := Present
		if err == nil && item.isBeside() {
			state, err = s.Find(ctx, item)
		}
		if state == Absent || state == Replaced {
			item.orphan = true
			orphans = append(orphans, item)
		} else {
			published = append(published, item)
		}
	}
	return published, orphans, err
}

// isBeside reports whether an item's index lies beside the store or below.
func (i Item) isBeside() bool {
	return !strings.HasPrefix(i.Name, "/") && !locate.IsURL(i.Name) && i.Name != "-"
}

// ReadItems reads the heads of the gc roots in a listing, and returns what they keep, the oldest first.
func ReadItems(ctx context.Context, records *gcroot.Dir, l gcroot.Listing) ([]Item, error) {
	type key struct {
		name  string
		index blob.Digest
	}
	found := map[key]*Item{}
	for _, e := range l.Roots {
		if !e.Retired.IsZero() {
			continue
		}
		r, err := records.Read(ctx, e, true)
		if errors.Is(err, store.ErrNotFound) { // gc has removed it since
			continue
		}
		if err != nil {
			return nil, err
		}
		k := key{r.Name, e.Index}
		item := found[k]
		switch {
		case item == nil:
			found[k] = &Item{Name: r.Name, Number: e.Number, Published: r.Published, Index: e.Index, Roots: []gcroot.Entry{e}}
		case e.Number >= item.Number:
			item.Number, item.Published = e.Number, r.Published
			item.Roots = append([]gcroot.Entry{e}, item.Roots...)
		default:
			item.Roots = append(item.Roots, e)
		}
	}
	items := make([]Item, 0, len(found))
	for _, item := range found {
		items = append(items, *item)
	}
	slices.SortFunc(items, compareItems)
	return items, nil
}

// Locate returns the location of an item's index.
func (s *Indexes) Locate(item Item) (locate.Location, error) {
	if !item.isBeside() {
		return locate.Parse(item.Name)
	}
	if path.Clean("/"+item.Name) != "/"+item.Name {
		return locate.Location{}, fmt.Errorf("%w: it is of an index with the name %q, which is not below the directory of the store", gcroot.ErrInvalid, item.Name)
	}
	dir, _, err := resolveStore(s.Store).TrimSlash().Split()
	return dir.Join(item.Name), err
}

// State is what is found at the location of an item's index.
type State string

// The states.
const (
	Present  State = "present"
	Absent   State = "absent"
	Replaced State = "replaced"  // by another index
	Stream   State = "unknown"   // it was written to stdout
	Beyond   State = "elsewhere" // not beside the store, and not looked at
)

// Find returns what is at the location of an item's index.
func (s *Indexes) Find(ctx context.Context, item Item) (State, error) {
	at, err := s.Locate(item)
	if err != nil {
		return "", err
	}
	switch {
	case at.IsStream():
		return Stream, nil
	case !item.isBeside() && !s.Elsewhere:
		return Beyond, nil
	}
	x, err := Open(ctx, s.Access, at)
	switch {
	case isAbsent(err):
		return Absent, nil
	case err != nil:
		return "", err
	case x.Digest() != item.Index:
		return Replaced, nil
	}
	return Present, nil
}

// Remove implements Shelf. It removes each index, unless another one has its name by now, then its companions, and then
// retires its gc roots. After a crash, the next Remove does the rest.
func (s *Indexes) Remove(ctx context.Context, items []Item, patience time.Duration) (removed []Item, err error) {
	if len(items) == 0 {
		return nil, nil
	}
	chosen := map[string]Item{}
	for _, item := range items {
		for _, e := range item.Roots {
			chosen[e.Name] = item
		}
	}
	turn, err := s.Records.Turn(ctx, patience)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, turn.End(ctx)) }()
	now, err := ReadItems(ctx, s.Records, turn.Listing)
	if err != nil {
		return nil, err
	}
	for _, item := range now {
		isOther := func(e gcroot.Entry) bool {
			_, is := chosen[e.Name]
			return !is
		}
		if slices.ContainsFunc(item.Roots, isOther) {
			continue
		}
		item.orphan = chosen[item.Roots[0].Name].orphan
		done, err := s.removeItem(ctx, turn, item)
		if err != nil {
			return removed, fmt.Errorf("removing %s: %w", item.Name, err)
		}
		if done {
			removed = append(removed, item)
		}
	}
	return removed, ctx.Err()
}

// removeItem removes an item in a turn. It reports false for an orphan whose publisher was at work when it was found, and
// has published the index since.
func (s *Indexes) removeItem(ctx context.Context, turn *gcroot.Turn, item Item) (done bool, err error) {
	state, err := s.Find(ctx, item)
	if err != nil || item.orphan && state == Present {
		return false, err
	}
	at, err := s.Locate(item)
	if err != nil {
		return false, err
	}
	var files []locate.Location
	if state == Present {
		files = append(files, at)
	}
	if state == Present || state == Absent { // else it belongs to the other index
		if file, err := ProfileOf(at); err == nil {
			files = append(files, file)
		}
	}
	if state != Stream && state != Beyond {
		if file, err := MapOf(at, item.Index); err == nil {
			files = append(files, file)
		}
	}
	for _, file := range files {
		err := turn.Do(ctx, func(ctx context.Context) error { return s.removeFile(ctx, file) })
		if err != nil {
			return false, fmt.Errorf("removing %s: %w", file, err)
		}
	}
	for _, e := range item.Roots {
		if err := turn.Do(ctx, func(ctx context.Context) error { return s.Records.Retire(ctx, e) }); err != nil {
			return false, err
		}
	}
	return true, ctx.Err()
}

// removeFile removes a file, which may be absent.
func (s *Indexes) removeFile(ctx context.Context, at locate.Location) error {
	b, name, err := s.Bucket(at)
	if err == nil {
		defer store.Close(b)
		remover, can := store.As[store.Remover](store.WithoutRetries(b))
		if !can {
			return fmt.Errorf("%v: %w", b, errors.ErrUnsupported)
		}
		err = remover.Remove(ctx, name)
	}
	if isAbsent(err) {
		return nil
	}
	return err
}

// RemoveDuplicates removes gc roots of an item but the newest, which keeps the same chunks. One with another map of packs
// stays: after a crash, the map beside the index may be either.
func (s *Indexes) RemoveDuplicates(ctx context.Context, items []Item) error {
	for _, item := range items {
		if len(item.Roots) < 2 {
			continue
		}
		newest, err := s.Records.Read(ctx, item.Roots[0], false)
		if errors.Is(err, store.ErrNotFound) { // another gc has removed it
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range item.Roots[1:] {
			other, err := s.Records.Read(ctx, e, false)
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !bytes.Equal(other.Map, newest.Map) {
				continue
			}
			if err := s.Records.Remove(ctx, e); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// Adoption is an index that gets a gc root, under a name.
type Adoption struct {
	Name  string
	Index *blob.Index
	Map   []byte // the file of its map of packs; nil for none
}

// Adopt writes gc roots for indexes that have none, and declares that gc manages the store from now on. The caller knows
// that the store has no other indexes. packs is the directory of its packs, nil for none. Adopt returns how many gc roots
// were written.
func Adopt(ctx context.Context, records *gcroot.Dir, to store.Bucket, packs store.Reader, indexes []Adoption) (adopted int, err error) {
	var refused error
	r, err := NewRecorder(ctx, records, to, func(n Note) { refused = n.(NotRecorded).Err })
	if err := cmp.Or(err, refused); err != nil {
		return 0, err
	}
	defer r.End()
	r.packs = packs
	items, err := ReadItems(ctx, records, r.lease.Listing)
	if err != nil {
		return 0, err
	}
	for _, a := range indexes {
		has := func(item Item) bool { return item.Name == a.Name && item.Index == a.Index.Digest() }
		if slices.ContainsFunc(items, has) {
			continue
		}
		if err := r.adopt(ctx, a); err != nil {
			return adopted, fmt.Errorf("%s: %w", a.Name, err)
		}
		adopted++
	}
	return adopted, records.Manage(ctx)
}

func (r *Recorder) adopt(ctx context.Context, a Adoption) error {
	m, err := decodeMap(&gcroot.Root{Name: a.Name, Index: a.Index, Map: a.Map})
	if err != nil {
		return err
	}
	if m != nil {
		if err := checkPacks(ctx, r.packs, m.Packs()); err != nil {
			return fmt.Errorf("its map names packs that are not there (if the store has its chunks, remove the map first): %w", err)
		}
	}
	return r.Record(ctx, a.Name, a.Index, a.Map)
}

func isAbsent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}
