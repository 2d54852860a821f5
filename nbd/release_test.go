package nbd_test

import (
	"context"
	"sync"
	"testing"

	"cairn/nbd"
)

// lender lends exports and knows which are out.
type lender struct {
	mu       sync.Mutex
	version  string
	out      map[string]int // by canonical name
	changed  chan struct{}
	negative bool
}

func newLender() *lender {
	return &lender{version: "1", out: make(map[string]int), changed: make(chan struct{}, 100)}
}

// Open knows x, and its present version and those that are out as x@VERSION.
func (l *lender) Open(_ context.Context, name string) (*nbd.Export, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	canonical := "x@" + l.version
	if l.out[name] > 0 {
		canonical = name
	}
	if name != "x" && name != canonical {
		return nil, nbd.ErrUnknown
	}
	l.out[canonical]++
	release := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.out[canonical]--
		l.negative = l.negative || l.out[canonical] < 0
		l.changed <- struct{}{}
	}
	return &nbd.Export{Name: "x", Canonical: canonical, Device: newLazy(data(mib)), Release: release}, nil
}

func (l *lender) Describe(_ context.Context, name string) (*nbd.Export, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	canonical := "x@" + l.version
	if name != "x" && name != canonical {
		return nil, nbd.ErrUnknown
	}
	return &nbd.Export{Name: "x", Canonical: canonical, Device: newLazy(data(mib))}, nil
}

func (l *lender) All(context.Context) ([]nbd.Listing, error) { return []nbd.Listing{{Name: "x"}}, nil }

func (l *lender) set(version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.version = version
}

// want waits until so many of a version are out.
func (l *lender) want(t *testing.T, canonical string, n int) {
	t.Helper()
	for {
		l.mu.Lock()
		got, negative := l.out[canonical], l.negative
		l.mu.Unlock()
		if negative {
			t.Fatalf("%s was released twice", canonical)
		}
		if got == n {
			return
		}
		<-l.changed
	}
}

// TestRelease: an export that a client has chosen is released once, when the client has left. One that it asks about is not
// opened. GO takes what INFO told of while that can be had, though the name has moved on.
func TestRelease(t *testing.T) {
	l := newLender()
	r := start(t, &nbd.Server{Exports: l})
	c, asking := r.dial(t), r.dial(t)
	if _, err := c.Go("x"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	l.want(t, "x@1", 0)

	if _, err := asking.Info("x"); err != nil {
		t.Fatal(err)
	}
	l.want(t, "x@1", 0)
	if _, err := asking.Info("y"); err == nil {
		t.Error("y is there")
	}

	first, pinned := r.dial(t), r.dial(t)
	if _, err := first.Go("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Info("x"); err != nil {
		t.Fatal(err)
	}
	l.set("2")
	info, err := pinned.Go("x")
	if err != nil || info.Name != "x@1" {
		t.Errorf("GO after INFO of x@1 = %+v, %v", info, err)
	}
	if err := first.Disconnect(); err != nil {
		t.Error(err)
	}
	later := r.dial(t)
	if info, err := later.Go("x"); err != nil || info.Name != "x@2" {
		t.Errorf("GO of a new client = %+v, %v", info, err)
	}
	l.want(t, "x@1", 1)
	l.want(t, "x@2", 1)
	if err := pinned.Disconnect(); err != nil {
		t.Error(err)
	}
	l.want(t, "x@1", 0)
	if info, err := asking.Go("x"); err != nil || info.Name != "x@2" {
		t.Errorf("GO of x, whose version that INFO told of is gone = %+v, %v", info, err)
	}
	r.stop()
	r.wait()
	l.want(t, "x@2", 0)
}
