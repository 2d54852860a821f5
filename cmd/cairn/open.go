package main

import (
	"cairn/blob"
	"cairn/store/locate"
	"cairn/store/supply"
)

// of returns the stores of an index: those named, or the default one beside the index.
func (f *stores) of(index locate.Location) ([][]locate.Location, error) {
	if len(f.groups) > 0 {
		return f.groups, nil
	}
	beside, err := index.DefaultStore()
	return [][]locate.Location{{beside}}, err
}

// warnLeftOut says that a store cannot be opened that others stand in for.
func warnLeftOut(err error) { say("warning: going on without one of the stores: %v", err) }

// openStores opens the stores of an index. No more than budget bytes are read from them, unless it is 0.
func openStores(f stores, index locate.Location, a blob.Algorithm, budget int64) (*supply.Supply, error) {
	groups, err := f.of(index)
	if err != nil {
		return nil, err
	}
	access, err := f.open()
	if err != nil {
		return nil, err
	}
	from, err := supply.Open(groups, access, a, supply.Options{
		Requests: f.fetches, RateLimit: f.rateLimit, Budget: budget, LeftOut: warnLeftOut})
	if err != nil {
		return nil, absentHint(err, "name the store with -s LOCATION")
	}
	if f.cache != "" {
		if err := addCache(from, f.cache, f.cacheLimit, a); err != nil {
			from.Close()
			return nil, err
		}
	}
	return from, nil
}
