package gcroot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
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
	lapsed  bool

	stop func() // ends the renewals, and waits for the last one
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
			if errors.Is(a.renew(renewals, 0), ErrLapsed) {
				return
			} // any other failure may pass
		}
	})
	a.stop = func() { cancel(); running.Wait() }
	return a, nil
}

// acquire waits for the lock, at most until ctx ends.
func (a *announcement) acquire(ctx context.Context) error {
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
	if err == nil {
		a.renewed = begun
	}
	return err
}

// renew writes the next object if the current one is older than age, and then removes those before. If the current
// one is gone already, the announcement was not in force all the time: ErrLapsed.
func (a *announcement) renew(ctx context.Context, age time.Duration) error {
	if err := a.acquire(ctx); err != nil {
		return err
	}
	defer a.release()
	switch {
	case a.lapsed:
		return ErrLapsed
	case a.renewed.since() < age:
		return nil
	}
	current, renewed := len(a.objects)-1, a.renewed
	err := a.write(ctx)
	if err == nil {
		err = a.confirm(ctx, a.objects[current])
	}
	if err != nil { // the current object is still the one before
		a.renewed = renewed
		last := len(a.objects) - 1
		a.objects[current], a.objects[last] = a.objects[last], a.objects[current]
		return err
	}
	for len(a.objects) > 1 {
		if err := a.dir.remove(ctx, a.objects[0]); err != nil {
			return err
		}
		a.objects = a.objects[1:]
	}
	return nil
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
	return a.confirm(ctx, a.objects[len(a.objects)-1])
}

// confirm looks whether an object of the announcement is there.
func (a *announcement) confirm(ctx context.Context, name string) error {
	has, err := a.dir.has(ctx, name)
	if err == nil && !has {
		a.lapsed = true
		return ErrLapsed
	}
	return err
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

// owns reports whether an object belongs to the announcement.
func (a *announcement) owns(name string) bool { return strings.HasPrefix(name, a.prefix+a.id+".") }

// look lists the directory, and returns the announcements of others with a prefix. The time of a's own object tells
// the time of the store. Announcements of others that have expired are removed, and then it lists again, because
// their owners may have renewed them in the meantime.
func (a *announcement) look(ctx context.Context, prefix string, ttl time.Duration) (others []string, l Listing, err error) {
	d := a.dir
	for {
		if l, err = d.List(ctx); err != nil {
			return nil, l, err
		}
		for _, o := range l.announced {
			if a.owns(o.name) && o.modified.After(l.now) {
				l.now = o.modified
			}
		}
		if l.now.IsZero() {
			return nil, l, a.explainUnlisted(l)
		}
		removed := false
		others = nil
		for _, o := range l.announced {
			if !strings.HasPrefix(o.name, prefix) || a.owns(o.name) {
				continue
			}
			ended := l.now.Sub(o.modified) > ttl
			if !ended && d.mayTrustProcesses(prefix) {
				ended, err = d.hasEnded(ctx, o.name)
				if err != nil {
					return nil, l, err
				}
			}
			if !ended {
				others = append(others, o.name)
				continue
			}
			if err := d.remove(ctx, o.name); err != nil {
				return nil, l, fmt.Errorf("removing an expired announcement: %w", err)
			}
			removed = true
		}
		if !removed {
			return others, l, nil
		}
	}
}

// explainUnlisted returns the error about a listing that does not tell the time of a's object.
func (a *announcement) explainUnlisted(l Listing) error {
	for _, o := range l.announced {
		if a.owns(o.name) {
			return fmt.Errorf("%v does not tell when its objects were written: %w", a.dir, errors.ErrUnsupported)
		}
	}
	return fmt.Errorf("%v does not list %s, which was just written: %w", a.dir, a.id, ErrLapsed)
}

// mayTrustProcesses reports whether the end of a process ends its announcement at once. A request that a dead
// publisher sent does no harm when it is carried out late, but one of a collector does.
func (d *Dir) mayTrustProcesses(prefix string) bool {
	return prefix == leasePrefix || d.options.OneMachine
}

// hasEnded reports whether the process of an announcement is known to have ended.
func (d *Dir) hasEnded(ctx context.Context, name string) (bool, error) {
	text, err := d.reader.Read(ctx, name, nil, maxProcess)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrTooLarge) {
		return false, nil // withdrawn, or not ours
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
func (d *Dir) pause(ctx context.Context) error {
	return store.Sleep(ctx, d.options.Poll/2+rand.N(d.options.Poll))
}

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
