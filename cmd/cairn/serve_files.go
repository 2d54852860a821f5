package main

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"cairn/internal/dashboard"
)

const (
	ownFiles         = 32  // the standard files, listeners, images that others are copied from, files that are open for a moment
	filesPerImage    = 3   // of an INDEX in --cache
	leastShares      = 4   // of all purposes together
	requestsPerStore = 256 // without --fetches, at most
)

// fileShares are the descriptors that serve may use for each purpose. Without them, a client with many connections or
// exports could take the descriptors of the others' images and of the stores.
type fileShares struct{ status, conns, requests, images int }

// divideFiles divides the descriptors of a process with a limit. wanted has the wanted numbers, fixed are those of the
// INDEX arguments and the seeds.
func divideFiles(limit, fixed int, wanted fileShares) (s fileShares) {
	left := max(limit-ownFiles-fixed, leastShares)
	s.status = min(wanted.status, left/4)
	left -= s.status
	s.conns = min(wanted.conns, left/2)
	left -= s.conns
	s.requests = min(wanted.requests, left/2)
	s.images = left - s.requests
	return s
}

// limitFiles limits the connections to what the process's limit of open files allows. It returns the connections of
// --metrics, the largest number of requests to each store, and the descriptors for the images of --watch. The seeds are
// open already. It refuses a limit with which connections would wait for descriptors that idle connections to stores hold.
func (f *serveFlags) limitFiles(seeds int) (fileShares, error) {
	limit := openFileLimit()
	fixed, stores := seeds, 0
	wanted := fileShares{conns: f.maxConns, requests: requestsPerStore}
	if f.cache != "" {
		fixed += filesPerImage * len(f.indexes)
	}
	for _, group := range f.groups {
		stores += len(group)
	}
	stores = max(stores, 1)
	if seeds > 0 && !f.noDelta {
		stores *= 2 // the deltas beside each store have connections of their own
	}
	if f.fetches > 0 {
		wanted.requests = f.fetches
	}
	if len(f.metrics) > 0 {
		wanted.status = dashboard.MaxConns
	}
	wanted.requests *= stores
	if least := ownFiles + fixed + leastShares; limit < least {
		return fileShares{}, fmt.Errorf("the limit of %d open files is too low: serve needs %d; "+
			"'ulimit -n' or systemd's LimitNOFILE= raises it", limit, least)
	}
	s := divideFiles(limit, fixed, wanted)
	if s.conns < f.maxConns {
		logf("warning: the limit of %d open files allows %d connections, and not --max-connections %d; 'ulimit -n' or systemd's LimitNOFILE= raises it",
			limit, s.conns, f.maxConns)
		f.maxConns = s.conns
	}
	s.requests = max(s.requests/stores, 1)
	return s, nil
}

// openFileLimit returns the largest number of descriptors that the process may have. Go has raised it to the hard limit.
func openFileLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt32
	}
	return int(min(l.Cur, math.MaxInt32))
}
