package gcsim

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"cairn/store"
)

// Times of the simulated protocol.
const (
	leaseTTL = 2 * time.Minute
	turnTTL  = 72 * time.Second
	// Times in which the service carries out a removal, and the writing of a gc root or an index, as the package comment
	// of gcroot assumes them. Requests of other records, whose names never come back, may take longer.
	removalTime = turnTTL/2 - time.Second
	indexTime   = leaseTTL/4 - time.Second
)

// maxRequests is far more than any schedule has: some processes wait for ever then.
const maxRequests = 100_000

// world is a simulated service, its actors, and the schedule of their requests. Everything but arrived belongs to the
// scheduler, which runs while all actors wait.
type world struct {
	setting
	rng     *rand.Rand
	actors  []*actor
	objects [places]map[string]*object
	written int // objects so far
	events  events
	counts  counts
	windows []window
	visible map[string]int // image of each visible index
	maps    packMaps
	failure string
	trace   []string // nil unless wanted

	mu      sync.Mutex // guards the fields below
	arrived []*request
	running int
	woken   chan struct{}
}

// setting is what a seed decides before the first request.
type setting struct {
	seed       uint64
	directory  bool // the service is a kernel: requests are carried out in time, and end with their sender
	oneMachine bool // as gcroot.Options has it
	sweeps     bool // many objects are removed with one request
	seconds    bool // times are whole seconds
	ignores    bool // Create replaces objects
	skew       time.Duration
	grace      time.Duration
	faults     float64       // share of the requests that fail, are answered late or are carried out twice
	pace       time.Duration // usual delay of a request
	packs      bool          // most publishers write packs
	variant    variant
}

// counts are events that a run of many schedules must contain.
type counts struct {
	requests, published, failed, lapsed, vanished, waited, busy int
	collected, chunks, crashed, interrupted, stopped, removed   int
	packed, packsRemoved, besidePublishers                      int // publications of packs; packs removed, and of them beside publishers
}

type object struct {
	data     []byte
	modified time.Time
	number   int // of the first write
	from     *actor
}

// window is a time for which the chunks of an image must be readable: its index was visible, and a client may have
// opened it at the last moment.
type window struct {
	image int
	packs packMap // that the client uses
	until time.Time
}

type event struct {
	at time.Time
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// after plans an event. No two events and no timers of actors are due at the same moment: the delays are whole
// milliseconds, and each event has nanoseconds of its own.
func (w *world) after(d time.Duration, do func()) {
	w.counts.requests++
	at := time.Now().Truncate(time.Millisecond).Add(d.Truncate(time.Millisecond) + time.Millisecond + time.Duration(w.counts.requests))
	heap.Push(&w.events, event{at, do})
}

// chance reports true in a share of the cases.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// upTo returns a random time.
func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) }

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		w.trace = append(w.trace, fmt.Sprintf("%9.3f ", time.Since(epoch).Seconds())+fmt.Sprintf(format, args...))
	}
}

// epoch is the beginning of time in a synctest bubble.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// fail ends the schedule.
func (w *world) fail(format string, args ...any) {
	if w.failure == "" {
		w.failure = fmt.Sprintf(format, args...)
		w.logf("FAILURE: %s", w.failure)
	}
}

// run carries out requests until no actor is left.
func (w *world) run() {
	for {
		synctest.Wait()
		w.admitArrived()
		if w.failure != "" {
			for _, a := range w.actors {
				w.crash(a)
			}
		}
		w.mu.Lock()
		running := w.running
		w.mu.Unlock()
		if w.counts.requests > maxRequests {
			w.fail("the schedule does not end")
		}
		switch {
		case running == 0 && (len(w.events) == 0 || w.failure != ""):
			return
		case len(w.events) == 0:
			<-w.woken
		default:
			w.runNext()
		}
	}
}

// runNext waits for the next event, or until a request arrives.
func (w *world) runNext() {
	if wait := time.Until(w.events[0].at); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-w.woken:
			return
		case <-timer.C:
			synctest.Wait() // timers of actors
		}
	}
	heap.Pop(&w.events).(event).do()
}

func (w *world) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// admitArrived decides the fate of the requests that have arrived.
func (w *world) admitArrived() {
	w.mu.Lock()
	arrived := w.arrived
	w.arrived = nil
	w.mu.Unlock()
	if len(arrived) > 1 {
		slices.SortFunc(arrived, func(a, b *request) int { return strings.Compare(a.key(), b.key()) })
	}
	for _, r := range arrived {
		w.admit(r)
	}
}

func (w *world) admit(r *request) {
	a := r.from
	a.arrivals++
	a.pending = append(a.pending, r)
	switch {
	case a.crashed:
		r.err = errCrashed
		w.answer(r)
		return
	case a.arrivals == a.crashAt:
		w.counts.crashed++
		w.logf("%v crashes at %v", a, r)
		if w.chance(0.5) {
			w.transmit(r)
		}
		w.crash(a)
		return
	case a.arrivals == a.interruptAt:
		w.counts.interrupted++
		w.logf("%v is interrupted at %v", a, r)
		if w.chance(0.5) {
			w.transmit(r)
		} else {
			r.err = context.Canceled
			w.answer(r)
		}
		a.cancel()
		synctest.Wait()
		return
	case a.arrivals == a.stopAt:
		sent := w.chance(0.5)
		w.counts.stopped++
		w.logf("%v stops for %v at %v (sent: %v)", a, a.stopFor, r, sent)
		a.setStopped(true)
		w.after(a.stopFor, func() { w.resume(a) })
		if sent {
			w.transmit(r)
			return
		}
	}
	if a.resumed != nil {
		a.held = append(a.held, func() { w.transmitLate(r) })
		return
	}
	w.transmit(r)
}

// transmitLate sends a request that was held, unless its time is over.
func (w *world) transmitLate(r *request) {
	if r.err = r.ctx.Err(); r.err != nil {
		w.answer(r)
		return
	}
	w.transmit(r)
}

// crash ends an actor. Its requests under way may still be carried out, but not in a directory.
func (w *world) crash(a *actor) {
	if a.crashed {
		return
	}
	w.mu.Lock()
	a.crashed = true
	w.mu.Unlock()
	a.setStopped(false)
	for _, r := range a.pending {
		r.err = errCrashed
		close(r.done)
	}
	a.pending, a.held = nil, nil
	a.cancel()
	if w.directory {
		for name, o := range w.objects[recordPlace] {
			if text, ok := bytes.CutSuffix(o.data, []byte("}\n")); ok && o.from == a && isAnnouncement(name) {
				o.data = append(bytes.Clone(text), `,"started":"1"}`...)
			}
		}
	}
}

// setStopped begins or ends the stop of an actor.
func (a *actor) setStopped(stopped bool) {
	a.w.mu.Lock()
	defer a.w.mu.Unlock()
	switch {
	case stopped:
		a.resumed = make(chan struct{})
	case a.resumed != nil:
		close(a.resumed)
		a.resumed = nil
	}
}

// resume ends the stop of an actor. Its clocks have gone on, so it abandons requests that it has not sent in time.
func (w *world) resume(a *actor) {
	if a.resumed == nil {
		return
	}
	w.logf("%v goes on", a)
	a.setStopped(false)
	synctest.Wait() // some requests are given up
	held := a.held
	a.held = nil
	for _, do := range held {
		do()
		synctest.Wait()
	}
}

// delay returns a random delay of a request.
func (w *world) delay(r *request) time.Duration {
	d := w.upTo(w.pace)
	switch {
	case w.chance(0.05):
		d = w.upTo(removalTime)
	case w.chance(0.3):
		d /= 64
	}
	return min(d, indexTime)
}

// lateness returns for how long a request may be under way after its sender got no answer.
func (w *world) lateness(r *request) time.Duration {
	switch {
	case r.place == indexPlace || strings.HasSuffix(r.names[0], rootSuffix) && !strings.HasPrefix(r.names[0], "retired/"):
		return w.upTo(indexTime)
	case r.place == chunkPlace:
		return w.upTo(removalTime)
	}
	return w.upTo(3 * leaseTTL)
}

// transmit sends a request to the service.
func (w *world) transmit(r *request) {
	a := r.from
	if r.gaveUp || a.crashed {
		return
	}
	switch r.verb {
	case pause:
		w.after(time.Second+w.upTo(leaseTTL/8), func() { w.answer(r) })
		return
	case forget:
		w.after(0, func() { a.forgetTurns(); w.answer(r) })
		return
	case list:
		if r.place == recordPlace && r.names[0] == "leases/" {
			a.looked = w.written
		}
	}
	d, fault := w.delay(r), -1
	if w.chance(w.faults) {
		fault = w.rng.IntN(3)
	}
	switch {
	case fault == 0: // the request is lost
		w.after(d, func() { w.logf("%v: %v is lost", a, r); r.err = errFailed; w.answer(r) })
	case fault == 1 && !w.directory: // the answer is lost
		if r.verb >= write {
			w.carryOutLater(r, w.lateness(r))
		}
		w.after(d, func() { w.logf("%v: the answer of %v is lost", a, r); r.err = errFailed; w.answer(r) })
	case fault == 2 && !w.directory && r.verb >= write && r.place == recordPlace: // it is carried out twice
		w.carryOutLater(r, d+w.lateness(r))
		fallthrough
	case r.verb != list:
		w.after(d, func() {
			if w.isDropped(r) {
				return
			}
			w.carryOut(r)
			if w.chance(0.7) {
				w.answer(r)
			} else {
				w.after(w.delay(r), func() { w.answer(r) })
			}
		})
	default:
		w.carryOutListing(r, d)
	}
}

// isDropped reports whether a request is not carried out because its sender has crashed: a kernel carries out a
// system call or not, but not later.
func (w *world) isDropped(r *request) bool { return w.directory && r.from.crashed }

// carryOutLater carries out a request whose answer is not given.
func (w *world) carryOutLater(r *request, d time.Duration) {
	again := *r
	w.after(d, func() {
		w.logf("late:")
		w.carryOut(&again)
	})
}

// carryOutListing lists in parts, each at another moment, because a listing is not a snapshot.
func (w *world) carryOutListing(r *request, d time.Duration) {
	parts, salt := 1+w.rng.IntN(3), w.rng.Uint64()
	slow := w.chance(0.2) // as of a directory with many records
	for part := range parts {
		if part > 0 {
			d += w.delay(r)
		}
		if part > 0 && slow {
			d += w.upTo(5 * time.Second)
		}
		w.after(d, func() {
			w.listPart(r, func(number int) bool { return rand.New(rand.NewPCG(salt, uint64(number))).IntN(parts) == part })
			if part == parts-1 {
				if r.place == packPlace && r.from.packsSeen == nil {
					r.from.packsSeen = slices.Clone(r.found)
				}
				w.logf("%v: %v = %v", r.from, r, r.from.describe(r))
				w.answer(r)
			}
		})
	}
}

// describe returns the canonical names that a listing has found.
func (a *actor) describe(r *request) (names []string) {
	for _, o := range r.found {
		names = append(names, a.canonical(r.place, o.Name))
	}
	return names
}

func (w *world) answer(r *request) {
	a := r.from
	if a.resumed != nil {
		a.held = append(a.held, func() { w.answer(r) })
		return
	}
	if i := slices.Index(a.pending, r); i >= 0 { // else the actor has crashed
		a.pending = slices.Delete(a.pending, i, i+1)
		close(r.done)
	}
}

// carryOut carries out a request that is no listing.
func (w *world) carryOut(r *request) {
	for _, name := range r.names {
		name = r.from.adapt(r, name)
		w.carryOutOne(r, name)
		w.logf("%v: %s %s %s (%v)", r.from, verbNames[r.verb], placeNames[r.place], r.from.canonical(r.place, name), r.err)
	}
}

func (w *world) carryOutOne(r *request, name string) {
	o := w.objects[r.place][name]
	switch {
	case r.verb == read || r.verb == stat:
		r.err = nil
		if o == nil {
			r.err = errAbsent
			return
		}
		r.answer = o.data
		r.from.dropOld(r)
	case r.verb == remove:
		if r.err = nil; o == nil {
			if len(r.names) == 1 {
				r.err = errAbsent
			}
			return
		}
		w.checkRemoval(r.place, name)
		delete(w.objects[r.place], name)
		if strings.HasSuffix(name, mapSuffix) && r.place == indexPlace {
			w.maps.remove(w, name)
		}
	case r.verb == create && o != nil && !w.ignores:
		r.err = errTaken
	default:
		r.err = nil
		if o == nil {
			w.written++
			o = &object{number: w.written, from: r.from}
			w.objects[r.place][name] = o
		}
		o.data, o.modified = r.data, w.now()
		switch {
		case r.place == indexPlace && strings.HasSuffix(name, mapSuffix):
			w.maps.write(w, name, r.data)
		case r.place == indexPlace:
			w.checkIndex(name, r.data)
		}
	}
}

// now returns the time by the clock of the service.
func (w *world) now() time.Time {
	now := time.Now().Add(w.skew)
	if w.seconds {
		now = now.Truncate(time.Second)
	}
	return now
}

// listPart adds the objects of a part to the answer of a listing.
func (w *world) listPart(r *request, isIn func(number int) bool) {
	if r.from.numbers == nil {
		r.from.numbers = map[string]int{}
	}
	prefix := r.from.canonical(r.place, r.names[0])
	if r.place == packPlace {
		if prefix = ""; r.from.remember(r) {
			return
		}
	}
	for name, o := range w.objects[r.place] {
		if strings.HasPrefix(name, prefix) && isIn(o.number) && !r.from.isHidden(r.place, name, o) {
			name = r.from.own(r.place, name)
			r.from.numbers[name] = o.number
			r.found = append(r.found, store.Object{Name: name, Size: int64(len(o.data)), Modified: o.modified})
		}
	}
	slices.SortFunc(r.found, func(a, b store.Object) int {
		return cmp.Compare(r.from.numbers[a.Name], r.from.numbers[b.Name])
	})
}

// checkRemoval fails if a chunk is removed that somebody may read.
func (w *world) checkRemoval(p place, name string) {
	switch p {
	case indexPlace:
		w.closeWindow(name)
	case packPlace:
		w.checkPackRemoval(name)
	case chunkPlace:
		w.counts.chunks++
		for index, image := range w.visible {
			if images()[image].has[name] {
				w.fail("the chunk %.8s of the visible index %s is removed", name, index)
			}
		}
		for _, v := range w.windows {
			if images()[v.image].has[name] && !time.Now().After(v.until) {
				w.fail("the chunk %.8s is removed %v before the grace of a reader of image %d ends", name, time.Until(v.until), v.image)
			}
		}
	}
}

// closeWindow notes that the index of a name is gone.
func (w *world) closeWindow(name string) {
	if image, is := w.visible[name]; is {
		w.windows = append(w.windows, window{image, w.maps.used[name], time.Now().Add(w.grace)})
		delete(w.visible, name)
		delete(w.maps.used, name)
	}
}

// checkIndex fails if an index becomes visible that is not readable.
func (w *world) checkIndex(name string, data []byte) {
	image := imageOf(data)
	if old, is := w.visible[name]; is && old != image {
		w.closeWindow(name)
	}
	w.visible[name] = image
	w.maps.use(w, name)
	w.checkReadable(name)
}

func (w *world) checkReadable(name string) {
	for _, d := range images()[w.visible[name]].chunks {
		if chunk := store.ObjectName(d, false); w.objects[chunkPlace][chunk] == nil && w.objects[packPlace][w.maps.used[name].packOf[chunk]] == nil {
			w.fail("the index %s is visible and lacks the chunk %.8s", name, chunk)
		}
	}
}

// actor is a simulated process.
type actor struct {
	w      *world
	number int
	kind   string
	ctx    context.Context
	cancel context.CancelFunc

	atOnce bool // requests are carried out at once, without the scheduler

	arrivals                     int
	crashAt, interruptAt, stopAt int // the request at which it happens; 0 for never
	stopFor                      time.Duration
	crashed                      bool
	resumed                      chan struct{} // nil unless stopped
	held                         []func()      // what happens when it goes on
	pending                      []*request    // not answered

	names     map[string]string // canonical IDs of the records that it named
	reals     map[string]string // and back
	numbers   map[string]int    // of the objects that it has listed
	assumed   []string          // chunks of which the publisher asks for one at random
	seen      int               // objects in the world at the first listing of the records
	packsSeen []store.Object    // by the first listing of packs
	looked    int               // objects in the world at the last look for leases
}

func (a *actor) String() string { return fmt.Sprintf("%s-%d", a.kind, a.number) }

// send waits for the answer to a request.
func (a *actor) send(ctx context.Context, r *request) error {
	if a.atOnce {
		if r.verb == list {
			a.w.listPart(r, func(int) bool { return true })
		} else {
			a.w.carryOut(r)
		}
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.ctx = ctx
	a.w.mu.Lock()
	if a.crashed {
		a.w.mu.Unlock()
		return errCrashed
	}
	a.w.arrived = append(a.w.arrived, r)
	a.w.mu.Unlock()
	a.w.wake()
	ended := ctx.Done()
	if a.w.directory {
		ended = nil // a system call takes as long as it takes
	}
	select {
	case <-r.done:
		return nil
	case <-ended:
	}
	a.w.mu.Lock()
	r.gaveUp = true
	resumed := a.resumed
	a.w.mu.Unlock()
	if resumed != nil {
		<-resumed
	}
	return ctx.Err()
}

// canonical returns the name of an object in the simulated service. The random IDs in the names of records are
// replaced by the numbers of their appearance, so that nothing random decides an order.
func (a *actor) canonical(p place, name string) string {
	if p == packPlace {
		return a.w.packName(name)
	}
	if p != recordPlace {
		return name
	}
	if lo, hi, ok := idOf(name); ok {
		if id, known := a.names[name[lo:hi]]; known {
			return name[:lo] + id + name[hi:]
		}
	}
	return name
}

// own returns an object's name as the actor knows it.
func (a *actor) own(p place, name string) string {
	if p != recordPlace {
		return name
	}
	if lo, hi, ok := idOf(name); ok {
		if id, mine := a.reals[name[lo:hi]]; mine {
			return name[:lo] + id + name[hi:]
		}
	}
	return name
}

// isSample reports whether a publisher asks for a random one of the chunks that it assumes. The seed chooses another.
func (a *actor) isSample(r *request) bool {
	return r.place == chunkPlace && r.verb == stat && len(a.assumed) > 0
}

// adapt returns the name in the service of an object of a request that is carried out.
func (a *actor) adapt(r *request, name string) string {
	if r.place == recordPlace && r.verb == write {
		if lo, hi, ok := idOf(name); ok && a.names[name[lo:hi]] == "" && !strings.HasPrefix(name, "retired/") {
			id := fmt.Sprintf("%016x", a.w.written+1)
			if a.names == nil {
				a.names, a.reals = map[string]string{}, map[string]string{}
			}
			a.names[name[lo:hi]], a.reals[id] = id, name[lo:hi]
		}
	}
	if a.isSample(r) {
		if strings.HasSuffix(name, ".cacnk") { // asked for first; there are none
			return a.assumed[0] + ".cacnk"
		}
		name, a.assumed = a.assumed[a.w.rng.IntN(len(a.assumed))], nil // of so few chunks the sample has one
		return name
	}
	if r.place == packPlace {
		return name
	}
	return a.canonical(r.place, name)
}

// add adds the counts of a schedule.
func (c *counts) add(d counts) {
	c.requests += d.requests
	c.published += d.published
	c.failed += d.failed
	c.lapsed += d.lapsed
	c.vanished += d.vanished
	c.waited += d.waited
	c.busy += d.busy
	c.collected += d.collected
	c.chunks += d.chunks
	c.crashed += d.crashed
	c.interrupted += d.interrupted
	c.stopped += d.stopped
	c.removed += d.removed
	c.packed += d.packed
	c.packsRemoved += d.packsRemoved
	c.besidePublishers += d.besidePublishers
}
