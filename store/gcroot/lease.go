package gcroot

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Lease is a publisher's announcement. While it is in force, no loose chunk is removed.
type Lease struct {
	a *announcement
	// Listing is the directory's content when the lease began.
	Listing Listing
	now     time.Time // by the clock of the store, when the lease began
	begun   instant
}

// Lease announces a publisher. It waits while a collector has its turn. Without
// the error is an ErrLapsed. End must be called.
func (d *Dir) Lease(ctx context.Context) (*Lease, error) {
	for first := true; ; first = false {
		a, err := d.announce(ctx, leasePrefix, d.options.LeaseTTL)
		if err != nil {
			return nil, err
		}
		begun := now()
		turns, storeNow, err := a.look(ctx, turnPrefix, d.options.TurnTTL)
		if err == nil && len(turns) == 0 {
			var l Listing
			if l, err = d.List(ctx); err == nil {
				return &Lease{a, l, storeNow, begun}, nil
			}
		}
		if err == nil && first {
			d.noteWaiting("gc removes chunks: " + d.describe(ctx, turns))
		}
		if err := errors.Join(err, a.withdraw(ctx)); err != nil {
			return nil, err
		}
		if err := d.options.Pause(ctx); err != nil {
			return nil, err
		}
	}
}

func (d *Dir) noteWaiting(text string) {
	if d.options.Waiting != nil {
		d.options.Waiting(text)
	}
}

// Check returns ErrLapsed if the lease was not in force all the time until now.
func (l *Lease) Check(ctx context.Context) error { return l.a.check(ctx) }

// Now returns the time by the clock of the store.
func (l *Lease) Now() time.Time { return l.now.Add(l.begun.since()) }

// Do calls write, which writes a gc root or an index, with a context that ends early enough for the lease. It returns
// ErrLapsed instead if the lease is not in force.
func (l *Lease) Do(ctx context.Context, write func(context.Context) error) error {
	return l.a.send(ctx, 3*l.a.ttl/4, write)
}

// AwaitPackTurns waits until no collector is removing packs. What a publisher wrote before is seen by later ones. It
// returns ErrLapsed instead if the lease is not in force.
func (l *Lease) AwaitPackTurns(ctx context.Context) error {
	d := l.a.dir
	for first := true; ; first = false {
		turns, _, err := l.a.look(ctx, packPrefix, d.options.TurnTTL)
		if err != nil || len(turns) == 0 {
			return err
		}
		if first {
			d.noteWaiting("gc removes packs: " + d.describe(ctx, turns))
		}
		if err := l.Check(ctx); err != nil { // a lease that is not renewed does not tell the time, and no turn expires
			return err
		}
		if err := d.options.Pause(ctx); err != nil {
			return err
		}
	}
}

// End withdraws the lease. If a service may still carry out such a write, it only ends the renewals, so that collectors
// wait until the lease expires.
func (l *Lease) End(ctx context.Context) error { return l.a.end(ctx) }

// Turn is a collector's announcement. While it is in force, no publisher is at work; in a pack turn, none publishes an
// index of packs.
type Turn struct {
	a *announcement
	// Listing is the directory's content after the last publisher has ended, or, of a pack turn, after its announcement.
	Listing Listing
}

// Turn announces a collector, and waits until no publisher is at work, for at most the time hold; then the error is
// ErrBusy. New publishers wait in the meantime. End must be called.
func (d *Dir) Turn(ctx context.Context, hold time.Duration) (*Turn, error) {
	a, err := d.announce(ctx, turnPrefix, d.options.TurnTTL)
	if err != nil {
		return nil, err
	}
	begun := now()
	for first := true; ; first = false {
		leases, _, err := a.look(ctx, leasePrefix, d.options.LeaseTTL)
		if err == nil && len(leases) == 0 {
			if err = a.check(ctx); err == nil {
				return d.beginTurn(ctx, a)
			}
		}
		if err == nil && first {
			d.noteWaiting("publishers are at work: " + d.describe(ctx, leases))
		}
		if err == nil && begun.since() > hold {
			err = fmt.Errorf("%w: %s", ErrBusy, d.describe(ctx, leases))
		}
		if err == nil {
			err = d.options.Pause(ctx)
		}
		if err != nil {
			return nil, errors.Join(err, a.withdraw(ctx))
		}
	}
}

// beginTurn lists the gc roots. In a turn it does so after the look that found no lease: a listing is no snapshot, and one
// that finds both may miss the gc root of a publisher that writes it and ends its lease in the meantime.
func (d *Dir) beginTurn(ctx context.Context, a *announcement) (*Turn, error) {
	l, err := d.List(ctx)
	if err != nil {
		return nil, errors.Join(err, a.withdraw(ctx))
	}
	return &Turn{a: a, Listing: l}, nil
}

// PackTurn announces a collector that removes packs which a gc root has named. It waits for no publisher. End must be
// called.
func (d *Dir) PackTurn(ctx context.Context) (*Turn, error) {
	a, err := d.announce(ctx, packPrefix, d.options.TurnTTL)
	if err != nil {
		return nil, err
	}
	if _, _, err := a.look(ctx, packPrefix, d.options.TurnTTL); err != nil { // which removes those that have expired
		return nil, errors.Join(err, a.withdraw(ctx))
	}
	return d.beginTurn(ctx, a)
}

// Do calls remove, which sends one removal, with a context that ends early enough for the turn. It returns ErrLapsed
// instead if the turn is not in force. The removal must not repeat its request by itself: after an error it is unknown
// whether a request will still be carried out, and Do must learn of each. Safe for concurrent use.
func (t *Turn) Do(ctx context.Context, remove func(context.Context) error) error {
	return t.a.send(ctx, t.a.ttl/2, remove)
}

// End withdraws the turn. If a service may still carry out a removal, it only ends the renewals, so that publishers
// wait until the turn expires.
func (t *Turn) End(ctx context.Context) error { return t.a.end(ctx) }
