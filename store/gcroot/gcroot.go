// Package gcroot keeps the records beside a store that gc decides by: a gc root for each published index, and the
// announcements of publishers and collectors at work. A gc root has a copy of its index, so that gc needs nothing
// else to know which chunks must stay. The package knows nothing of locations, and nothing of what else a store
// keeps.
//
// # Protocol
//
// A publisher announces itself with a lease before it asks which chunks the store holds. It writes the gc root
// after the chunks are durable, looks whether its lease is still there, and then writes the index. A collector
// announces its turn, waits until there is no lease, reads the gc roots, and then removes the chunks that are in
// none of them. A publisher that finds a turn withdraws its lease and waits. Each side writes its own announcement
// before it looks for the other's. So at least one of two sees the other, whatever the order of their requests.
//
// An announcement that its owner does not renew expires, by the clock of the store. Who believes that it has
// expired removes it, and looks again before it goes on. So the owner finds out: a publisher whose lease is gone
// does not publish, and a collector whose turn is gone removes nothing more. No name of an announcement or a gc
// root is used twice, so that a removal that comes late removes nothing else. A write that comes late may bring an
// announcement back. So its owner also counts the time since the last renewal.
//
// A listing shows what is there from its beginning to its end. It may miss what is written or removed in between.
// So the gc roots are listed after the look that found no lease, and a renewal removes an object only when the
// next one has been there for longer than a look may take.
//
// The names of chunks and indexes do come back. If a collector stops for long between its look at its turn and the
// removal of a chunk, a publisher may rely on the chunk in the meantime. So a collector sends a removal only within
// a quarter of the time in which its turn expires, and gives each request as long. The service has the other half
// to carry out a request that it has received. A publisher sends the gc root and the index within three quarters
// of the life of its lease, and the service has the last one. So a gc root has all its chunks, and no collector
// sees a gc root whose index is still to come. After a request that got no answer, the announcement is not
// withdrawn: it expires.
//
// The names of packs do not come back, so packs that a gc root has named are removed while publishers are at work. The
// collector announces its pack turn, lists the gc roots, and removes the packs that none of them names now. A publisher
// writes its gc root, waits until there is no pack turn, and then looks whether the packs are there. A collector whose
// pack turn it has not seen has either removed them already, or will see the gc root. A pack that no gc root has ever
// named may be that of a publisher at work, and is removed in a turn only.
package gcroot

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/blob"
	"cairn/store"
)

// Errors that callers decide by.
var (
	// ErrUnmanaged reports that a store is not managed by gc: it may have indexes without a gc root.
	ErrUnmanaged = errors.New("gc does not manage the store")
	// ErrLapsed reports that an announcement was removed because it was not renewed in time.
	ErrLapsed = errors.New("the announcement has expired")
	// ErrBusy reports that publishers were at work for the whole time that a turn may wait.
	ErrBusy = errors.New("publishers are at work")
	// ErrInvalid reports a gc root or a config that cannot be decoded.
	ErrInvalid = errors.New("invalid gc record")
)

// Suffix ends the name of a gc root.
const Suffix = ".caroot"

// Names in the directory.
const (
	configName    = "config"
	retiredPrefix = "retired/"
	leasePrefix   = "leases/"
	turnPrefix    = "turns/"
	packPrefix    = "packturns/"
	clockPrefix   = "clock/"
)

// config is the content of the object whose presence says that gc manages the store.
const config = "cairn gc 1\n"

// Times after which an announcement that is not renewed expires.
const (
	leaseTTL = 10 * time.Minute
	turnTTL  = 2 * time.Minute
)

// Options are the times of a Dir. The zero value has the defaults; only tests need others.
type Options struct {
	LeaseTTL time.Duration // a lease that is not renewed for so long expires
	TurnTTL  time.Duration // the same for a turn
	// Pause waits between two looks at others' announcements, or until ctx ends; nil waits about a second.
	Pause func(ctx context.Context) error
	// OneMachine says that all users of the store's directory share one kernel or its locks do not matter:
	// work of a process of this machine that has ended is over. It is false for a store on a server, which may
	// carry out a request after its sender has ended.
	OneMachine bool
	// MayManage reports whether a store without chunks and gc roots may be declared managed; nil says yes. It is asked
	// whether there are packs of indexes without a gc root.
	MayManage func(ctx context.Context) (bool, error)
	// Waiting is called with the text about the others, when their work must be waited for; may be nil.
	Waiting func(others string)
}

// Dir is the directory of the records beside a store. Safe for concurrent use.
type Dir struct {
	reader  store.Reader
	bucket  store.Bucket // nil if it is only read, as remover
	lister  store.Lister
	remover store.Remover
	options Options
}

// Open returns the records in a bucket. A bucket that cannot list or remove objects, such as a WebDAV server, is an
// errors.ErrUnsupported.
func Open(b store.Bucket, o Options) (*Dir, error) {
	d := &Dir{reader: b, bucket: b, options: o}
	d.options.LeaseTTL = cmp.Or(o.LeaseTTL, leaseTTL)
	d.options.TurnTTL = cmp.Or(o.TurnTTL, turnTTL)
	if o.Pause == nil {
		d.options.Pause = pause
	}
	var lists, removes bool
	d.lister, lists = store.As[store.Lister](b)
	d.remover, removes = store.As[store.Remover](b)
	if !lists || !removes {
		return nil, fmt.Errorf("keeping gc roots in %v: %w", b, errors.ErrUnsupported)
	}
	return d, nil
}

// OpenReader returns the records in a place for reading only. One that cannot be listed, such as a web server, is an
// errors.ErrUnsupported.
func OpenReader(r store.Reader) (*Dir, error) {
	lister, lists := store.As[store.Lister](r)
	if !lists {
		return nil, fmt.Errorf("reading gc roots in %v, which cannot be listed: %w", r, errors.ErrUnsupported)
	}
	return &Dir{reader: r, lister: lister}, nil
}

// String returns the location of the directory for messages.
func (d *Dir) String() string { return d.reader.String() }

// Close closes the bucket. It does nothing without a Dir.
func (d *Dir) Close() {
	if d != nil {
		store.Close(d.reader)
	}
}

// IsManaged reports whether gc manages the store whose records are in r. It needs no listing.
func IsManaged(ctx context.Context, r store.Reader) (bool, error) {
	text, err := r.Read(ctx, configName, nil, int64(len(config)))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	case errors.Is(err, store.ErrTooLarge) || err == nil && string(text) != config:
		return false, fmt.Errorf("%v/%s: %w: it may be of a newer version of cairn, which must be used then", r, configName, ErrInvalid)
	}
	return err == nil, err
}

// IsManaged reports whether gc manages the store.
func (d *Dir) IsManaged(ctx context.Context) (bool, error) { return IsManaged(ctx, d.reader) }

// MayManage asks Options.MayManage.
func (d *Dir) MayManage(ctx context.Context) (bool, error) {
	if d.options.MayManage == nil {
		return true, nil
	}
	return d.options.MayManage(ctx)
}

// Manage declares that every index of the store has its gc root, now and from now on.
func (d *Dir) Manage(ctx context.Context) error {
	return d.bucket.Write(ctx, configName, []byte(config))
}

// Entry is a gc root in a listing.
type Entry struct {
	Name    string      // of the object
	Index   blob.Digest // of the index
	Number  uint32      // of the publication; a later one that began after this one had ended has a larger number
	Retired time.Time   // when it was retired, by the clock of the store; zero for a live one
}

// Listing is the content of the directory.
type Listing struct {
	Managed bool // gc manages the store
	Roots   []Entry
	Leases  int // at work or not yet expired
	Turns   int // those of packs included
	// Others are the names of objects that are no records.
	Others []string
}

// Next returns the number of a publication that begins now.
func (l *Listing) Next() (number uint32) {
	for _, e := range l.Roots {
		number = max(number, e.Number)
	}
	return max(number+1, number) // the largest one has no next
}

// List lists the directory. A config of another version is an ErrInvalid: its rules are unknown.
func (d *Dir) List(ctx context.Context) (Listing, error) {
	var l Listing
	retired, leases, turns := map[string]time.Time{}, map[string]bool{}, map[string]bool{}
	for o, err := range d.lister.List(ctx, "") {
		if err != nil {
			return Listing{}, fmt.Errorf("listing %v: %w", d, err)
		}
		switch {
		case o.Name == configName:
			l.Managed = true
		case strings.HasPrefix(o.Name, retiredPrefix):
			retired[strings.TrimPrefix(o.Name, retiredPrefix)] = o.Modified
		case strings.HasPrefix(o.Name, leasePrefix):
			leases[ownerOf(o.Name)] = true
		case strings.HasPrefix(o.Name, turnPrefix), strings.HasPrefix(o.Name, packPrefix):
			turns[ownerOf(o.Name)] = true
		case strings.HasPrefix(o.Name, clockPrefix):
		default:
			e, ok := parseRootName(o.Name)
			if !ok {
				l.Others = append(l.Others, o.Name)
				continue
			}
			l.Roots = append(l.Roots, e)
		}
	}
	for i, r := range l.Roots {
		if at, is := retired[r.Name]; is {
			l.Roots[i].Retired = at
			delete(retired, r.Name)
		}
	}
	for name := range retired { // its gc root is gone
		l.Others = append(l.Others, retiredPrefix+name)
	}
	slices.SortFunc(l.Roots, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(l.Others)
	l.Leases, l.Turns = len(leases), len(turns)
	if l.Managed {
		managed, err := d.IsManaged(ctx)
		if err != nil {
			return Listing{}, err
		}
		l.Managed = managed
	}
	return l, ctx.Err()
}

// announced is an object of an announcement.
type announced struct {
	name     string
	modified time.Time
}

// listAnnounced lists the announcements with a prefix.
func (d *Dir) listAnnounced(ctx context.Context, prefix string) (all []announced, err error) {
	for o, err := range d.lister.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("listing %v: %w", d, err)
		}
		all = append(all, announced{o.Name, o.Modified})
	}
	slices.SortFunc(all, func(a, b announced) int { return strings.Compare(a.name, b.name) })
	return all, ctx.Err()
}

// ownerOf returns what the names of all objects of an announcement begin with.
func ownerOf(name string) string {
	owner, _, _ := strings.Cut(name, ".")
	return owner
}

// Now returns the time by the clock of the store: that of an object written now.
func (d *Dir) Now(ctx context.Context) (now time.Time, err error) {
	name := clockPrefix + newID()
	if err := d.bucket.Write(ctx, name, nil); err != nil {
		return now, err
	}
	defer func() { _ = d.remove(ctx, name) }()
	return d.modified(ctx, name)
}

// modified returns the time of an object, which must exist.
func (d *Dir) modified(ctx context.Context, name string) (time.Time, error) {
	for o, err := range d.lister.List(ctx, name) {
		switch {
		case err != nil:
			return time.Time{}, fmt.Errorf("listing %v: %w", d, err)
		case o.Name == name && o.Modified.IsZero():
			return time.Time{}, fmt.Errorf("%v does not tell when its objects were written: %w", d, errors.ErrUnsupported)
		case o.Name == name:
			return o.Modified, nil
		}
	}
	return time.Time{}, fmt.Errorf("%v/%s: %w", d, name, store.ErrNotFound)
}

// has reports whether an object exists.
func (d *Dir) has(ctx context.Context, name string) (bool, error) {
	_, err := d.reader.Stat(ctx, name)
	switch {
	case err == nil || errors.Is(err, store.ErrNoSize):
		return true, nil
	case errors.Is(err, store.ErrNotFound):
		return false, nil
	}
	return false, err
}

// remove removes an object, which may be absent.
func (d *Dir) remove(ctx context.Context, name string) error {
	err := d.remover.Remove(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// newID returns a name that was never used before.
func newID() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	return hex.EncodeToString(id[:])
}
