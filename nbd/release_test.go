package nbd_test

import (
	"context"
	"sync"
	"testing"

	"cairn/nbd"
)

// versionedExports has one export in several versions, and counts the open ones.
type versionedExports struct {
	mu       sync.Mutex
	version  string
	open     map[string]int // by canonical name
	changed  chan struct{}
	negative bool
}

func newVersionedExports() *versionedExports {
	return &versionedExports{version: "1", open: make(map[string]int), changed: make(chan struct{}, 100)}
}

// Open knows x, and as x@VERSION the present version and the open ones.
func (l *versionedExports) Open(_ context.Context, name string) (*nbd.Export, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	canonical := "x@" + l.version
	if l.open[name] > 0 {
		canonical = name
	}
	if name != "x" && name != canonical {
		return nil, nbd.ErrUnknown
	}
	l.open[canonical]++
	release := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open[canonical]--
		l.negative = l.negative || l.open[canonical] < 0
		l.changed <- struct{}{}
	}
	return &nbd.Export{Name: "x", Canonical: canonical, Device: newLazy(data(mib)), Release: release}, nil
}

func (l *versionedExports) Describe(_ context.Context, name string) (*nbd.Export, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	canonical := "x@" + l.version
	if name != "x" && name != canonical {
		return nil, nbd.ErrUnknown
	}
	return &nbd.Export{Name: "x", Canonical: canonical, Device: newLazy(data(mib))}, nil
}

func (l *versionedExports) All(context.Context) ([]nbd.Listing, error) {
	return []nbd.Listing{{Name: "x"}}, nil
}

func (l *versionedExports) setVersion(version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.version = version
}

// awaitOpen waits until a version is open n times.
func (l *versionedExports) awaitOpen(t *testing.T, canonical string, n int) {
	t.Helper()
	for {
		l.mu.Lock()
		got, negative := l.open[canonical], l.negative
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

// TestRelease: an export is released once, after its client has disconnected. INFO does not open
// it. GO opens the version that INFO described while that exists, even if the name means another
// one.
func TestRelease(t *testing.T) {
	l := newVersionedExports()
	r := startServer(t, &nbd.Server{Exports: l})
	c, asking := r.dialClient(t), r.dialClient(t)
	if _, err := c.Go("x"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	l.awaitOpen(t, "x@1", 0)

	if _, err := asking.Info("x"); err != nil {
		t.Fatal(err)
	}
	l.awaitOpen(t, "x@1", 0)
	if _, err := asking.Info("y"); err == nil {
		t.Error("y is there")
	}

	first, pinned := r.dialClient(t), r.dialClient(t)
	if _, err := first.Go("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := pinned.Info("x"); err != nil {
		t.Fatal(err)
	}
	l.setVersion("2")
	info, err := pinned.Go("x")
	if err != nil || info.Name != "x@1" {
		t.Errorf("GO after INFO of x@1 = %+v, %v", info, err)
	}
	if err := first.Disconnect(); err != nil {
		t.Error(err)
	}
	later := r.dialClient(t)
	if info, err := later.Go("x"); err != nil || info.Name != "x@2" {
		t.Errorf("GO of a new client = %+v, %v", info, err)
	}
	l.awaitOpen(t, "x@1", 1)
	l.awaitOpen(t, "x@2", 1)
	if err := pinned.Disconnect(); err != nil {
		t.Error(err)
	}
	l.awaitOpen(t, "x@1", 0)
	if info, err := asking.Go("x"); err != nil || info.Name != "x@2" {
		t.Errorf("GO of x after its described version is gone = %+v, %v", info, err)
	}
	r.stop()
	r.wait()
	l.awaitOpen(t, "x@2", 0)
}
