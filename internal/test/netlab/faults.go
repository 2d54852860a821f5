package netlab

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// Fault is a way in which a web server fails.
type Fault int

// The faults. Honest is none.
const (
	Honest        Fault = iota
	ServerError         // 500, 502, 503 or 504
	Burst               // 503 to this request and the next ones, whoever sends them
	Throttled           // 429, with Retry-After in seconds
	ThrottledDate       // 429, with Retry-After as a date
	ResetEarly          // a reset before the header; what was to be written is written
	ResetMidBody        // a reset in the middle of the body; what was to be written is not
	Truncated           // the right Content-Length, and half of the body
	LongLength          // Content-Length says more than there is
	ShortLength         // Content-Length says less than is sent
	BadChunked          // a chunked body whose framing breaks off
	BitFlip             // one bit of the body is another
	OtherBytes          // the body of another object
	Zeros               // a body of the right length, of zeros
	WebPage             // 200 and text/html: a captive portal
	Disguised           // 200 and a web page that says to be something else
	SlowHeader          // the header comes a byte at a time
	SlowBody            // the body comes a byte at a time
	Silent              // no answer
	Denied              // 403 to this request and the next ones: credentials that have expired
	Missing             // 404 for what is there
	Stale               // what was there before: see Faults.Stale
	faultsEnd
)

// AllFaults are the faults, without Honest.
func AllFaults() []Fault {
	var all []Fault
	for f := Honest + 1; f < faultsEnd; f++ {
		all = append(all, f)
	}
	return all
}

func (f Fault) String() string {
	names := [...]string{"honest", "5xx", "5xx burst", "429", "429 with a date", "reset early", "reset mid-body", "truncated",
		"long length", "short length", "bad chunked", "bit flip", "other bytes", "zeros", "web page", "disguised page",
		"slow header", "slow body", "silent", "denied", "missing", "stale"}
	if f < 0 || int(f) >= len(names) {
		return fmt.Sprintf("fault %d", int(f))
	}
	return names[f]
}

// Faults say how often a server fails, and how. The zero value never fails.
type Faults struct {
	// Seed and the number of times that a request was made before decide over each: the order in which
	// requests for different objects come changes nothing, but for bursts.
	Seed uint64
	Rate float64                  // of the requests that fail, 0 to 1
	Mix  map[Fault]int            // weights
	Only func(*http.Request) bool // picks requests that may fail; nil picks all

	First      int           // so many requests for an object may fail, and later ones do not; 0 is no limit
	RetryAfter time.Duration // what a Throttled answer asks for, in whole seconds
	Length     int           // how many requests a Burst and a Denied hit; 0 is 4
	Drip       time.Duration // between the bytes of slow answers; 0 is 50 ms
	// Stale names what is sent instead of an object, or is "" if there was nothing before it.
	Stale func(path string) string
}

// Of is Faults of these kinds, as often as each other.
func Of(seed uint64, rate float64, kinds ...Fault) Faults {
	f := Faults{Seed: seed, Rate: rate, Mix: map[Fault]int{}}
	for _, k := range kinds {
		f.Mix[k] = 1
	}
	return f
}

// chance is what decides over the n-th request for an object.
func (f Faults) chance(object string, n int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, object)
	return rand.New(rand.NewPCG(f.Seed, h.Sum64()+uint64(n)<<48))
}

// draw picks what becomes of a request.
func (f Faults) draw(chance *rand.Rand) Fault {
	var all int
	for _, weight := range f.Mix {
		all += weight
	}
	if all == 0 || chance.Float64() >= f.Rate {
		return Honest
	}
	n := chance.IntN(all)
	for k := range faultsEnd { // a map has no order
		if n -= f.Mix[k]; n < 0 {
			return k
		}
	}
	panic("netlab: a Mix with negative weights")
}

// lasts says how many requests a fault hits.
func (f Faults) lasts(k Fault) int {
	switch {
	case k != Burst && k != Denied:
		return 1
	case f.Length == 0:
		return 4
	}
	return f.Length
}

func (f Faults) drip() time.Duration {
	if f.Drip == 0 {
		return 50 * time.Millisecond
	}
	return f.Drip
}

// applies says whether a fault can be seen in the honest answer to a request.
func (k Fault) applies(r *http.Request, honest *answer) bool {
	aboutBody := []Fault{Truncated, LongLength, ShortLength, BadChunked, BitFlip, OtherBytes, Zeros, WebPage, Disguised, SlowBody}
	switch {
	case slices.Contains(aboutBody, k):
		return r.Method == http.MethodGet && honest.status == http.StatusOK && len(honest.body) > 1
	case k == ResetMidBody:
		return isWrite(r) || r.Method == http.MethodGet && len(honest.body) > 1
	case k == Missing:
		return !isWrite(r) && honest.status == http.StatusOK
	}
	return true
}

// refuses says whether a server that fails like this does not do what it was asked to.
func (k Fault) refuses() bool {
	return slices.Contains([]Fault{ServerError, Burst, Throttled, ThrottledDate, Denied, ResetMidBody, Silent}, k)
}

func isWrite(r *http.Request) bool { return r.Method == http.MethodPut || r.Method == http.MethodPost }
