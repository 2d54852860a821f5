package gcroot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// announcement is an object that says that its owner is at work. It is renewed by a new object, because a renewed
// object of the same name could hide that others had removed it.
type announcement struct {
	dir    *Dir
	prefix string // leasePrefix or turnPrefix
	id     string
	ttl    time.Duration

	lock    chan struct{} // holds one value during requests, so that one at a time changes the fields below
	number  int           // of the last object
	objects []string      // names of objects that may exist, the current one last
	renewed instant       // before the request that wrote the current object
	visible instant       // after it
	lapsed  bool

	uncertain atomic.Bool // a request of send has got no answer, and may still be carried out
	stop      func()      // ends the renewals, and waits for the last one
}

// announce writes a new announcement, and renews it until it is withdrawn.
func (d *Dir) announce(ctx context.Context, prefix string, ttl time.Duration) (*announcement, error) {
	a := &announcement{dir: d, prefix: prefix, id: newID(), ttl: ttl, lock: make(chan struct{}, 1)}
	if err := a.write(ctx); err != nil {
		return nil, fmt.Errorf("announcing work in %v: %w", d, err)
	}
	renewals, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		for store.Sleep(renewals, ttl/6) == nil {
			if _, err := a.renew(renewals, 0); errors.Is(err, ErrLapsed) {
				return
			} // any other failure may pass
		}
	})
	a.stop = func() { cancel(); running.Wait() }
	return a, nil
}

// acquire waits for the lock, at most until ctx ends.
func (a *announcement) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil { // select would choose at random
		return err
	}
	select {
	case a.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *announcement) release() { <-a.lock }

// write writes the next object.
func (a *announcement) write(ctx context.Context) error {
	begun, name := now(), fmt.Sprintf("%s%s.%d", a.prefix, a.id, a.number)
	a.number++
	a.objects = append(a.objects, name) // also if it fails, since the object may exist nevertheless
	err := a.dir.bucket.Write(ctx, name, thisProcess().encode())
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) { // gc makes room, and an empty file may still fit
		err = a.dir.bucket.Write(ctx, name, nil)
	}
	if err == nil {
		a.renewed, a.visible = begun, now()
	}
	return err
}

// renew writes the next object if the current one is older than age, and then removes those before the current one. If
// that is gone already, the announcement was not in force all the time: ErrLapsed. It stays until the next renewal,
// because a listing of others may have begun before the new one was there.
// renew returns a moment before the current object was written.
func (a *announcement) renew(ctx context.Context, age time.Duration) (renewed instant, err error) {
	if err := a.acquire(ctx); err != nil {
		return renewed, err
	}
	defer a.release()
	switch {
	case a.lapsed:
		return renewed, ErrLapsed
	case a.renewed.since() < age:
		return a.renewed, nil
	}
	current, renewed, visible := len(a.objects)-1, a.renewed, a.visible
	settled := visible.since() >= overlap(a.ttl)
	err = a.write(ctx)
	if err == nil {
		err = a.confirm(ctx, a.objects[current], renewed)
	}
	if err != nil { // the current object is still the one before
		a.renewed, a.visible = renewed, visible
		last := len(a.objects) - 1
		a.objects[current], a.objects[last] = a.objects[last], a.objects[current]
		return renewed, err
	}
	for settled && len(a.objects) > 2 {
		if err := a.dir.remove(ctx, a.objects[0]); err != nil {
			return renewed, err
		}
		a.objects = a.objects[1:]
	}
	return a.renewed, nil
}

// check returns ErrLapsed if the announcement was not in force until now.
func (a *announcement) check(ctx context.Context) error {
	if err := a.acquire(ctx); err != nil {
		return err
	}
	defer a.release()
	if a.lapsed {
		return ErrLapsed
	}
	return a.confirm(ctx, a.objects[len(a.objects)-1], a.renewed)
}

// confirm looks whether an object of the announcement is there. If others may have removed it already, since it was
// written too long ago, it proves nothing: a service may have repeated the request that wrote it.
func (a *announcement) confirm(ctx context.Context, name string, written instant) error {
	has, err := a.dir.has(ctx, name)
	if err == nil && (!has || written.since() > a.ttl) {
		a.lapsed = true
		return ErrLapsed
	}
	return err
}

// send calls do, which sends a request that is allowed while the announcement is in force. Its context ends when limit,
// a part of the time to live, has passed since the last renewal. A service has the rest to carry out the request.
func (a *announcement) send(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	renewed, err := a.renew(ctx, a.ttl/4)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit-a.ttl/4)
	defer cancel()
	note := func(failed error) {
		if failed != nil && !a.dir.options.OneMachine && !isAnswer(failed) {
			a.uncertain.Store(true)
		}
	}
	err = do(deadline{store.WithFailures(ctx, note), renewed, limit}) // a retry may hide an attempt without an answer
	note(err)
	return err
}

// isAnswer reports whether an error is a service's answer, so that it does not carry out the request later.
func isAnswer(err error) bool {
	return errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrNotFound) ||
		errors.Is(err, errors.ErrUnsupported)
}

// deadline is a context that has ended when a time has passed by any clock of the machine. A timer fires too late after
// the machine has slept, and a little too late after the process was stopped.
type deadline struct {
	context.Context
	since instant
	limit time.Duration
}

func (d deadline) Err() error {
	err := d.Context.Err()
	if err == nil && d.since.since() >= d.limit {
		return context.DeadlineExceeded
	}
	return err
}

// end withdraws the announcement, or lets it expire if a request may still be carried out. Its last object then names no
// process, because the end of this process must not end it.
func (a *announcement) end(ctx context.Context) error {
	if !a.uncertain.Load() {
		return a.withdraw(ctx)
	}
	a.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := a.acquire(ctx); err != nil {
		return err
	}
	defer a.release()
	return a.dir.bucket.Write(ctx, fmt.Sprintf("%s%s.%d", a.prefix, a.id, a.number), nil)
}

// withdraw ends the announcement. It does so even after ctx has ended, since others would wait for it.
func (a *announcement) withdraw(ctx context.Context) (err error) {
	a.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := a.acquire(ctx); err != nil {
		return err
	}
	defer a.release()
	a.lapsed = true
	for _, name := range a.objects {
		err = errors.Join(err, a.dir.remove(ctx, name))
	}
	return err
}

// look returns the announcements of others with a prefix, and the time of the store, which a's own object tells. Those
// that have expired are removed, and then it lists again, because their owners may have renewed them in the meantime.
// A listing is no snapshot. It contains one of two objects of an announcement at least if it takes less time than both
// of them are there, so a slower one is repeated.
func (a *announcement) look(ctx context.Context, prefix string, ttl time.Duration) (others []string, storeNow time.Time, err error) {
	for slow := 0; slow < maxSlowLooks; {
		// The time of the store is that of a's last renewal. An old one would make a fresh announcement one of the future.
		if _, err := a.renew(ctx, min(a.ttl, ttl)/4); err != nil {
			return nil, storeNow, err
		}
		begun := now()
		if storeNow, err = a.storeTime(ctx); err != nil {
			return nil, storeNow, err
		}
		all, err := a.dir.listAnnounced(ctx, prefix)
		if err != nil {
			return nil, storeNow, err
		}
		if begun.since() > overlap(ttl) {
			slow++
			continue
		}
		others, removed, err := a.removeExpired(ctx, all, storeNow, prefix, ttl)
		if err != nil || !removed {
			return others, storeNow, err
		}
	}
	return nil, storeNow, fmt.Errorf("listing the announcements in %v took longer than %v, %d times: %w", a.dir, overlap(ttl), maxSlowLooks, store.ErrUnavailable)
}

// maxSlowLooks limits the repetitions of a listing that takes too long.
const maxSlowLooks = 10

// overlap returns for how long a renewed announcement has two objects at least.
func overlap(ttl time.Duration) time.Duration { return ttl / 12 }

// removeExpired removes the announcements that have expired, and returns the others.
func (a *announcement) removeExpired(
	ctx context.Context, all []announced, storeNow time.Time, prefix string, ttl time.Duration,
) (others []string, removed bool, err error) {
	d := a.dir
	for _, o := range all {
		// A time in the future is from before the store's clock was set back.
		ended := storeNow.Sub(o.modified).Abs() > ttl
		if !ended && d.mayTrustProcesses(prefix) {
			if ended, err = d.hasEnded(ctx, o.name); err != nil {
				return nil, false, err
			}
		}
		if !ended {
			if len(others) == 0 || ownerOf(others[len(others)-1]) != ownerOf(o.name) {
				others = append(others, o.name)
			}
			continue
		}
		if err := d.remove(ctx, o.name); err != nil {
			return nil, false, fmt.Errorf("removing an expired announcement: %w", err)
		}
		removed = true
	}
	return others, removed, nil
}

// storeTime returns the time of the store when a was renewed last.
func (a *announcement) storeTime(ctx context.Context) (last time.Time, err error) {
	all, err := a.dir.listAnnounced(ctx, a.prefix+a.id+".")
	switch {
	case err != nil:
		return last, err
	case len(all) == 0:
		return last, fmt.Errorf("%v does not list %s%s, which was just written: %w", a.dir, a.prefix, a.id, ErrLapsed)
	}
	for _, o := range all {
		if o.modified.After(last) {
			last = o.modified
		}
	}
	if last.IsZero() {
		err = fmt.Errorf("%v does not tell when its objects were written: %w", a.dir, errors.ErrUnsupported)
	}
	return last, err
}

// mayTrustProcesses reports whether the end of a process ends its announcement at once. A request that a dead
// publisher sent does no harm when it is carried out late, but one of a collector does.
func (d *Dir) mayTrustProcesses(prefix string) bool {
	return prefix == leasePrefix || d.options.OneMachine
}

// hasEnded reports whether the process of an announcement is known to have ended.
func (d *Dir) hasEnded(ctx context.Context, name string) (bool, error) {
	text, err := d.reader.Read(ctx, name, nil, maxProcess)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrDenied) {
		return false, nil // withdrawn, not ours, or of a user whose files others cannot read
	}
	p, ok := decodeProcess(text)
	return ok && p.hasEnded(), err
}

// describe returns the processes of announcements, for messages.
func (d *Dir) describe(ctx context.Context, names []string) string {
	var texts []string
	for i, name := range names {
		if i == 3 {
			texts = append(texts, "others")
			break
		}
		text, err := d.reader.Read(ctx, name, nil, maxProcess)
		if p, ok := decodeProcess(text); err == nil && ok {
			texts = append(texts, fmt.Sprintf("%.40s (%d) on %.60s", p.Command, p.PID, p.Host))
		} else {
			texts = append(texts, d.String()+"/"+name)
		}
	}
	return strings.Join(texts, ", ")
}

// pause waits between two looks. The random part keeps those who wait from looking at the same moments.
func pause(ctx context.Context) error { return store.Sleep(ctx, time.Second/2+rand.N(time.Second)) }

// instant is a moment of this machine's clocks.
type instant struct {
	clock time.Time
	boot  time.Duration // since the boot of the machine; it goes on while the machine sleeps
}

func now() instant {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // on an error it is 0, and clock counts
	return instant{time.Now(), time.Duration(t.Nano())}
}

// since returns the time that has passed since an instant.
func (i instant) since() time.Duration {
	n := now()
	return max(n.clock.Sub(i.clock), n.boot-i.boot)
}
