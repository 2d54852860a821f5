package main

import (
	"math"

	"golang.org/x/sys/unix"
)

const (
	ownFiles         = 32  // the standard files, listeners, images that others are copied from, files that are open for a moment
	filesPerImage    = 3   // of an INDEX in --cache
	requestsPerStore = 256 // without --fetches, at most
)

// fileShares are the descriptors that serve may use for each purpose. Without them, a client with many connections or
// exports could take the descriptors of the others' images and of the stores.
type fileShares struct{ conns, requests, images int }

// divideFiles divides the descriptors of a process with a limit. conns and requests are the wanted numbers, fixed are
// those of the INDEX arguments.
func divideFiles(limit, conns, requests, fixed int) (s fileShares) {
	left := max(limit-ownFiles-fixed, 4)
	s.conns = min(conns, left/2)
	left -= s.conns
	s.requests = min(requests, left/2)
	s.images = left - s.requests
	return s
}

// limitFiles limits the connections to what the process's limit of open files allows. It returns the largest number of
// requests to each store, and the descriptors for the images of --watch.
func (f *serveFlags) limitFiles() (requests, images int) {
	limit := openFileLimit()
	fixed, stores, wanted := 0, 0, requestsPerStore
	if f.cache != "" {
		fixed = filesPerImage * len(f.indexes)
	}
	for _, group := range f.groups {
		stores += len(group)
	}
	stores = max(stores, 1)
	if f.fetches > 0 {
		wanted = f.fetches
	}
	s := divideFiles(limit, f.maxConns, stores*wanted, fixed)
	if s.conns < f.maxConns {
		logf("warning: the limit of %d open files allows %d connections, and not --max-connections %d; 'ulimit -n' or systemd's LimitNOFILE= raises it",
			limit, s.conns, f.maxConns)
		f.maxConns = s.conns
	}
	return max(s.requests/stores, 1), s.images
}

// openFileLimit returns the largest number of descriptors that the process may have. Go has raised it to the hard limit.
func openFileLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt32
	}
	return int(min(l.Cur, math.MaxInt32))
}
