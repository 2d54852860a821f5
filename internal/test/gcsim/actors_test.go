package gcsim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
)

// image is an image of a few chunks, and its index.
type image struct {
	index  *blob.Index
	chunks []blob.Digest
	has    map[string]bool // names of the chunks
	text   []byte          // the index
}

var params = blob.Params{Min: 1, Avg: 4, Max: 8}

// images returns the images that all schedules share. Each shares chunks with others.
var images = sync.OnceValue(func() (all []image) {
	for _, numbers := range [][]int{{0, 1, 2, 3}, {2, 3, 4}, {0, 4, 5, 6}, {1, 5, 7}, {6, 7, 8}, {3, 8, 9}} {
		b, err := blob.NewBuilder(blob.SHA512_256, params)
		if err != nil {
			panic(err)
		}
		m := image{has: map[string]bool{}}
		for _, n := range numbers {
			d := blob.SHA512_256.Sum(content(n))
			if _, err := b.Add(4, d); err != nil {
				panic(err)
			}
			m.chunks = append(m.chunks, d)
			m.has[store.ObjectName(d, false)] = true
		}
		m.index = b.Index()
		m.text = m.index.Encode()
		all = append(all, m)
	}
	return all
})

// content returns the bytes of a chunk.
func content(number int) []byte { return fmt.Appendf(nil, "%04d", number) }

var contents = sync.OnceValue(func() map[blob.Digest][]byte {
	all := map[blob.Digest][]byte{}
	for n := range 10 {
		all[blob.SHA512_256.Sum(content(n))] = content(n)
	}
	return all
})

var imagesByText = sync.OnceValue(func() map[string]int {
	all := map[string]int{}
	for i, m := range images() {
		all[string(m.text)] = i
	}
	return all
})

func imageOf(index []byte) int {
	i, known := imagesByText()[string(index)]
	if !known {
		panic("an index of no image was written")
	}
	return i
}

func imageOfDigest(index blob.Digest) int {
	return slices.IndexFunc(images(), func(m image) bool { return m.index.Digest() == index })
}

// rootSuffix ends the names of gc roots.
const rootSuffix = gcroot.Suffix

func isAnnouncement(name string) bool {
	return strings.HasPrefix(name, "leases/") || strings.HasPrefix(name, "turns/") || strings.HasPrefix(name, "packturns/")
}

// newActor returns a process. Some crash, some are interrupted, and some stop for a while.
func (w *world) newActor(kind string) *actor {
	a := &actor{w: w, number: len(w.actors), kind: kind}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	at := 1 + w.rng.IntN(30)
	switch w.rng.IntN(6) {
	case 0:
		a.crashAt = at
	case 1:
		a.interruptAt = at
	case 2, 3:
		a.stopAt, a.stopFor = at, turnTTL/8+w.upTo(2*leaseTTL)
	}
	w.actors = append(w.actors, a)
	return a
}

// start runs a job in a process of its own, and once more in another if it fails.
func (w *world) start(kind string, after time.Duration, job func(a *actor) error) {
	first, second := w.newActor(kind), w.newActor(kind)
	w.running++
	go func() {
		if store.Sleep(first.ctx, after) == nil && first.run(job) != nil {
			if store.Sleep(second.ctx, time.Second) == nil {
				_ = second.run(job)
			}
		}
		w.mu.Lock()
		w.running--
		w.mu.Unlock()
		w.wake()
	}()
}

// run runs a job, and then what the variant does at the end of a process.
func (a *actor) run(job func(a *actor) error) error {
	err := job(a)
	if a.w.variant.withdrawsTurn {
		_ = bucket{a, recordPlace}.send(context.Background(), forget, []string{""}, nil)
	}
	return err
}

// bucket returns the access to a place, with the retries that cairn has for places on a server.
func (a *actor) bucket(p place) store.Bucket {
	b := store.Bucket(bucket{a, p})
	if a.w.sweeps {
		b = sweeping{bucket{a, p}}
	}
	if a.w.directory || a.atOnce {
		return b
	}
	return store.RetryBucket(b, retries)
}

// retries is a policy whose waits have no random part.
var retries = store.Policy{First: 1, Max: 1, Patience: turnTTL / 8}

func (a *actor) records() *gcroot.Dir {
	d, err := gcroot.Open(a.bucket(recordPlace), gcroot.Options{
		LeaseTTL: leaseTTL, TurnTTL: turnTTL, OneMachine: a.w.oneMachine,
		Pause: func(ctx context.Context) error {
			return (bucket{a, recordPlace}).send(ctx, pause, []string{""}, nil).err
		},
		Waiting: func(string) { a.count(&a.w.counts.waited) },
	})
	if err != nil {
		panic(err)
	}
	return d
}

// count adds to a counter from an actor.
func (a *actor) count(n *int) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	*n++
}

// publication is what a publisher does.
type publication struct {
	image      int
	name       string
	listed     bool // the store is listed, not asked for each chunk
	createOnly bool
	base       int  // an image that the store is said to hold; -1 for none
	packs      bool // new chunks go into packs
	both       bool // and into files
}

func (a *actor) publish(o publication) error {
	err := a.tryPublish(o)
	vanished := (*release.VanishedError)(nil)
	switch {
	case err == nil:
		if a.count(&a.w.counts.published); o.packs {
			a.count(&a.w.counts.packed)
		}
	case errors.As(err, &vanished):
		a.count(&a.w.counts.vanished)
		fallthrough
	default:
		a.count(&a.w.counts.failed)
	}
	return err
}

func (a *actor) tryPublish(o publication) error {
	v, m := a.w.variant, images()[o.image]
	ctx, chunks := a.ctx, a.bucket(chunkPlace)
	held := map[blob.Digest]bool{}
	if v.looksEarly {
		if err := a.lookFor(m, held); err != nil {
			return err
		}
	}
	var bases []release.Base
	if o.base >= 0 {
		bases = []release.Base{{Index: images()[o.base].index}}
	}
	assumes := o.listed || o.base >= 0
	note := func(n release.Note) {
		if _, is := n.(release.BaseLeftOut); is {
			assumes = o.listed
		}
	}
	options := release.PublisherOptions{
		Writer:    store.WriterOptions{Compression: store.None},
		Algorithm: blob.SHA512_256, Params: params, Chunks: int64(len(m.chunks)), Remote: o.listed,
		Records: a.records(), Name: o.name, Bases: bases, Notes: note,
	}
	if o.packs {
		options.Packs = a.packOptions(o.both)
	}
	p, err := release.NewPublisher(ctx, chunks, options)
	if err != nil {
		return err
	}
	defer p.Close()
	to, err := release.OutletIn(ctx, bucket{a, indexPlace}, locate.Location{}, o.name, release.OutletOptions{CreateOnly: o.createOnly})
	if err != nil {
		return err
	}
	var assumed []string
	for _, d := range m.chunks {
		has := held[d]
		if !v.looksEarly {
			if has, err = p.Has(ctx, d); err != nil {
				return err
			}
		}
		if !has {
			if _, err := p.Put(ctx, d, contents()[d]); err != nil {
				return err
			}
		} else if assumes && !o.packs {
			assumed = append(assumed, store.ObjectName(d, false))
		}
	}
	a.w.mu.Lock()
	a.assumed = assumed
	a.w.mu.Unlock()
	if !v.indexFirst {
		return p.Publish(ctx, to, m.index)
	}
	return errors.Join(p.Commit(ctx), to.Publish(ctx, m.index), p.Finish(ctx, m.index))
}

// lookFor asks the store for the chunks of an image.
func (a *actor) lookFor(m image, held map[blob.Digest]bool) error {
	chunks := store.NewChunks(a.bucket(chunkPlace), blob.SHA512_256)
	for _, d := range m.chunks {
		_, err := chunks.Stat(a.ctx, d)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		held[d] = err == nil
	}
	return nil
}

func (a *actor) collect() error {
	if a.number%4 == 0 {
		if err := a.tidy(); err != nil {
			return err
		}
	}
	_, err := keep.Collect(a.ctx, a.bucket(chunkPlace), a.records(), keep.CollectOptions{
		Packs: a.bucket(packPlace), Grace: a.w.grace, Workers: 1, Patience: 3 * leaseTTL, Retry: retries,
	})
	switch {
	case errors.Is(err, gcroot.ErrBusy):
		a.count(&a.w.counts.busy)
	case errors.Is(err, gcroot.ErrLapsed):
		a.count(&a.w.counts.lapsed)
	case err == nil:
		a.count(&a.w.counts.collected)
	}
	return err
}

// remove removes items and duplicates of the others, as 'cairn repo gc' does. Most of release.Indexes cannot run here,
// because it opens locations by itself.
func (a *actor) remove(isRemoved func(release.Item, state) bool) error {
	d := a.records()
	l, err := d.List(a.ctx)
	if err != nil {
		return err
	}
	items, err := release.ReadItems(a.ctx, d, l)
	if err != nil {
		return err
	}
	chosen := map[string]bool{}
	var others []release.Item
	for _, item := range items {
		s, err := a.find(item)
		if err != nil {
			return err
		}
		is := isRemoved(item, s)
		for _, e := range item.Roots {
			chosen[e.Name] = is
		}
		if !is {
			others = append(others, item)
		}
	}
	if len(others) < len(items) {
		turn, err := d.Turn(a.ctx, 3*leaseTTL)
		if err != nil {
			return err
		}
		if err := errors.Join(a.removeInTurn(d, turn, chosen), turn.End(a.ctx)); err != nil {
			return err
		}
	}
	return (&release.Indexes{Records: d}).RemoveDuplicates(a.ctx, others)
}

func (a *actor) removeInTurn(d *gcroot.Dir, turn *gcroot.Turn, chosen map[string]bool) error {
	items, err := release.ReadItems(a.ctx, d, turn.Listing)
	if err != nil {
		return err
	}
	for _, item := range items {
		if slices.ContainsFunc(item.Roots, func(e gcroot.Entry) bool { return !chosen[e.Name] }) {
			continue
		}
		s, err := a.find(item)
		if err != nil {
			return err
		}
		if s == present {
			err := turn.Do(a.ctx, func(ctx context.Context) error {
				err := bucket{a, indexPlace}.Remove(ctx, item.Name)
				if errors.Is(err, store.ErrNotFound) {
					return nil
				}
				return err
			})
			if err != nil {
				return err
			}
			a.count(&a.w.counts.removed)
		}
		if a.w.packs {
			err := turn.Do(a.ctx, func(ctx context.Context) error {
				err := bucket{a, indexPlace}.Remove(ctx, mapName(item.Name, imageOfDigest(item.Index)))
				if errors.Is(err, store.ErrNotFound) {
					return nil
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		for _, e := range item.Roots {
			if err := turn.Do(a.ctx, func(ctx context.Context) error { return d.Retire(ctx, e) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// state is what is found under the name of an item.
type state int

const (
	absent state = iota
	present
	replaced
)

func (a *actor) find(item release.Item) (state, error) {
	text, err := bucket{a, indexPlace}.Read(a.ctx, item.Name, nil, 1<<16)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return absent, nil
	case err != nil:
		return 0, err
	case images()[imageOf(text)].index.Digest() != item.Index:
		return replaced, nil
	}
	return present, nil
}

// tidy retires the gc roots of which the index is absent or replaced, and removes duplicates.
func (a *actor) tidy() error {
	return a.remove(func(_ release.Item, s state) bool { return s != present })
}

// fill writes what the service holds before the first request of the schedule: an image that stays, one that a
// remover may remove, one that was removed, and chunks of another that no gc root keeps.
func (w *world) fill() error {
	a := &actor{w: w, kind: "setup", number: -1, ctx: context.Background(), atOnce: true}
	defer time.Sleep(w.upTo(w.grace + time.Minute))
	if w.packs {
		return w.fillPacks(a)
	}
	d := a.records()
	if err := d.Manage(a.ctx); err != nil {
		return err
	}
	for i, name := range []string{"stays", "goes", "gone", ""} {
		image := images()[i]
		for _, c := range image.chunks {
			if err := a.bucket(chunkPlace).Write(a.ctx, store.ObjectName(c, false), contents()[c]); err != nil {
				return err
			}
		}
		if name == "" {
			continue
		}
		e, err := d.Write(a.ctx, &gcroot.Root{Name: name, Index: image.index}, 1)
		if err == nil && name == "gone" {
			err = d.Retire(a.ctx, e)
		} else if err == nil {
			err = a.bucket(indexPlace).Write(a.ctx, name, image.text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// settle lets the last collector run when all is quiet, and checks what remains.
func (w *world) settle() error {
	time.Sleep(w.grace + 4*leaseTTL)
	a := &actor{w: w, kind: "last", number: -2, ctx: context.Background(), atOnce: true}
	d := a.records()
	l, err := d.List(a.ctx)
	if err != nil {
		return err
	}
	if !l.Managed {
		return nil // no publisher has come so far
	}
	if err := a.tidy(); err != nil {
		return err
	}
	time.Sleep(w.grace + time.Second)
	last := keep.CollectOptions{Packs: a.bucket(packPlace), Grace: w.grace, Workers: 1}
	if _, err := keep.Collect(a.ctx, a.bucket(chunkPlace), d, last); err != nil {
		return err
	}
	turn, err := d.Turn(a.ctx, 0)
	if err != nil {
		return err
	}
	if err := turn.End(a.ctx); err != nil {
		return err
	}
	if turn, err = d.PackTurn(a.ctx); err != nil {
		return err
	}
	if err := turn.End(a.ctx); err != nil {
		return err
	}
	lease, err := d.Lease(a.ctx)
	if err != nil {
		return err
	}
	if err := lease.End(a.ctx); err != nil {
		return err
	}
	return w.checkRemains(d)
}

// checkRemains fails if a chunk is left that no gc root keeps, or if an index is not readable.
func (w *world) checkRemains(d *gcroot.Dir) error {
	l, err := d.List(context.Background())
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	named, packs := map[string]bool{}, map[string]bool{}
	for _, e := range l.Roots {
		r, err := d.Read(context.Background(), e, false)
		if err != nil {
			return err
		}
		if !e.Retired.IsZero() {
			w.fail("the retired gc root of %s is left", r.Name)
			continue
		}
		if image, is := w.visible[r.Name]; !is || images()[image].index.Digest() != e.Index {
			w.fail("the gc root of %s is left, and there is no such index", r.Name)
		}
		for _, c := range r.Index.All() {
			kept[store.ObjectName(c.Digest, false)] = true
		}
		m, err := keep.MapOf(r)
		if err != nil {
			return err
		}
		if m != nil {
			for _, p := range m.Packs() {
				packs[p.Name()] = true
			}
		}
		named[r.Name] = true
	}
	for name := range w.objects[packPlace] {
		if !packs[name] {
			w.fail("%s is left, and no gc root keeps it", w.packName(name))
		}
	}
	for name := range w.objects[chunkPlace] {
		if !kept[name] {
			w.fail("the chunk %.8s is left, and no gc root keeps it", name)
		}
	}
	for name := range w.visible {
		if w.checkReadable(name); !named[name] {
			w.fail("the index %s has no gc root", name)
		}
	}
	if l.Leases+l.Turns > 0 {
		w.fail("%d leases and %d turns are left", l.Leases, l.Turns)
	}
	return nil
}

// newWorld returns the world of a seed.
func newWorld(seed uint64, v variant) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), visible: map[string]int{}, maps: newPackMaps(), woken: make(chan struct{}, 1)}
	w.setting = setting{seed: seed, variant: v}
	w.directory = w.chance(0.3)
	w.oneMachine = w.directory && w.chance(0.3)
	w.sweeps = !w.directory && w.chance(0.7)
	w.seconds = !w.directory && w.chance(0.7)
	w.ignores = w.chance(0.3)
	w.skew = w.upTo(2*time.Hour) - time.Hour
	w.grace = []time.Duration{0, 20 * time.Second, 2 * time.Minute}[w.rng.IntN(3)]
	w.faults = []float64{0, 0, 0.01, 0.05}[w.rng.IntN(4)]
	w.pace = []time.Duration{50 * time.Millisecond, time.Second, 4 * time.Second}[w.rng.IntN(3)]
	w.packs = w.chance(0.5)
	for p := range w.objects {
		w.objects[p] = map[string]*object{}
	}
	return w
}

// runAll runs the schedule.
func (w *world) runAll() error {
	defer func() {
		for _, a := range w.actors {
			a.cancel()
		}
	}()
	if w.chance(0.85) { // else the store is new
		if err := w.fill(); err != nil {
			return err
		}
	}
	w.begin()
	w.run()
	if w.failure != "" {
		return nil
	}
	return w.settle()
}

// begin starts the actors.
func (w *world) begin() {
	span := 40*w.pace + 10*time.Second
	for i := range 1 + w.rng.IntN(3) {
		o := publication{image: w.rng.IntN(len(images())), name: fmt.Sprintf("new%d", i), listed: !w.directory && w.chance(0.5), createOnly: w.chance(0.2), base: -1}
		if w.chance(0.2) {
			o.base = w.rng.IntN(len(images()))
		}
		if w.packs && w.chance(0.8) {
			o.packs, o.both = true, w.chance(0.2)
			if w.chance(0.3) {
				o.base = 2 // whose gc root has expired, perhaps
			}
		}
		if w.chance(0.3) {
			again := w.rng.IntN(3)
			if o.name = []string{"stays", "goes", "new0"}[again]; w.chance(0.5) {
				o.image = again // the same image again, where there is one
			}
		}
		w.start("publisher", w.upTo(span), func(a *actor) error { return a.publish(o) })
	}
	for range 1 + w.rng.IntN(2) {
		w.start("collector", w.upTo(span), func(a *actor) error { return a.collect() })
	}
	if w.chance(0.7) {
		w.start("remover", w.upTo(span), func(a *actor) error {
			return a.remove(func(item release.Item, _ state) bool { return item.Name == "goes" })
		})
	}
}
