package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"cairn/blob/trust"
	"cairn/blob/update"
	"cairn/store"
)

// The herd: a million machines that look for updates by the timer in docs/agent.md, simulated machine by machine with the
// rules of the agent. Waits and rollouts are the product's own functions.
const (
	herdSize  = 1_000_000
	simulated = 100_000 // machines; each stands for ten
	atBoot    = 5 * time.Minute
	interval  = time.Hour
	delay     = 30 * time.Minute // random, behind both
	patience  = time.Minute      // with a server that does not answer
	checkCost = 2                // requests: the channel and the release
	linkBits  = 20e6             // of a machine
)

// herd is a scenario.
type herd struct {
	name     string
	together bool                          // all machines boot at the same moment
	away     time.Duration                 // the server does not answer in the first part of the scenario
	percent  func(since time.Duration) int // of the rollout, since the release
	update   download                      // of a machine
}

var all = func(time.Duration) int { return 100 }

// byHours rolls a release out to so many percent more each hour.
func byHours(percent int) func(time.Duration) int {
	return func(since time.Duration) int { return min(100, percent*(1+int(since/time.Hour))) }
}

var herds = []herd{
	{"a release, all at once", false, 0, all, byDelta},
	{"the same, 10 % more each hour", false, 0, byHours(10), byDelta},
	{"the same, by chunks", false, 0, byHours(10), byChunks},
	{"all machines boot at once", true, 0, all, byDelta},
	{"a server that is away for 10 min", false, 10 * time.Minute, all, byDelta},
	{"the same, and all machines boot in it", true, 10 * time.Minute, all, byDelta},
}

// herdResult is what a server sees.
type herdResult struct {
	checks, requests, bits float64 // a second, at most
	half, most, last       time.Duration
}

// load is what arrives at the server in each second.
type load struct{ checks, requests, bits []float64 }

func (l *load) add(series *[]float64, from, to time.Duration, rate float64) {
	for second := int(from / time.Second); second <= int(to/time.Second); second++ {
		if second >= len(*series) {
			*series = append(*series, make([]float64, second+1-len(*series)+3600)...)
		}
		(*series)[second] += rate
	}
}

// simulate returns what a scenario does.
func (h herd) simulate() herdResult {
	random := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // the tables are the same each time
	var l load
	var done []time.Duration
	spread := func(limit time.Duration) time.Duration { return time.Duration(random.Int64N(int64(limit))) }
	for n := range simulated {
		id := fmt.Sprint("machine ", n)
		at := atBoot + spread(delay)
		if !h.together { // it was started long ago
			at = spread(interval + delay)
		}
		for {
			answered, ended := h.check(at, random, &l)
			if answered && update.InRollout(trust.Rollout{Percent: h.percent(ended), Seed: "42"}, id) {
				took := time.Duration(h.update.sent() * 8 / linkBits * float64(time.Second))
				l.add(&l.requests, ended, ended+took, h.update.requests/(took.Seconds()+1))
				l.add(&l.bits, ended, ended+took, h.update.sent()*8/(took.Seconds()+1))
				done = append(done, ended+took)
				break
			}
			at = ended + interval + spread(delay)
		}
	}
	slices.Sort(done)
	const each = herdSize / simulated
	part := func(share float64) time.Duration { return done[int(share*float64(len(done)-1))] }
	return herdResult{each * peak(l.checks), each * peak(l.requests), each * peak(l.bits), part(0.5), part(0.99), part(1)}
}

// peak returns the largest mean of ten seconds.
func peak(series []float64) (largest float64) {
	const seconds = 10
	for from := range series {
		sum := 0.0
		for _, n := range series[from:min(from+seconds, len(series))] {
			sum += n
		}
		largest = max(largest, sum/seconds)
	}
	return largest
}

// check looks for an update at a time, with the retries of a store that does not answer, and returns when that ended.
func (h herd) check(at time.Duration, random *rand.Rand, l *load) (answered bool, ended time.Duration) {
	begun := at
	backoff := store.Backoff{First: 250 * time.Millisecond, Max: 10 * time.Second}
	for attempt := 1; ; attempt++ {
		l.add(&l.checks, at, at, 1)
		if at >= h.away {
			l.add(&l.checks, at, at, checkCost-1)
			return true, at
		}
		longest := backoff.Longest(attempt)
		wait := longest - time.Duration(random.Int64N(int64(longest/2)+1)) // as Backoff.Wait
		if at+wait > begun+patience {
			return false, at
		}
		at += wait
	}
}

func herdTable() string {
	t := newTable("", "requests for the channel, at most", "requests in all, at most", "sent, at most", "half have it after", "99 %", "all")
	for _, h := range herds {
		r := h.simulate()
		t.add(h.name, count(r.checks)+"/s", count(r.requests)+"/s", fmt.Sprintf("%.0f Gbit/s", r.bits/giga), duration(r.half), duration(r.most), duration(r.last))
	}
	return t.String()
}
