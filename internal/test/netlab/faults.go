package netlab

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// Fault is a kind of failure of a web server.
type Fault int

// The faults. Honest means no fault.
const (
	Honest        Fault = iota
	ServerError         // 500, 502, 503 or 504
	Burst               // 503 to this request and the next ones, from any client
	Throttled           // 429, with Retry-After in seconds
	ThrottledDate       // 429, with Retry-After as a date
	ResetEarly          // a reset before the header; a write is carried out
	ResetMidBody        // a reset in the middle of the body; a write is not carried out
	Truncated           // the right Content-Length, and half of the body
	LongLength          // Content-Length is larger than the body
	ShortLength         // Content-Length is smaller than the body
	BadChunked          // a chunked body with broken framing
	BitFlip             // one bit of the body is flipped
	OtherBytes          // the body of another object
	Zeros               // a body of the right length, of zeros
	WebPage             // 200 and text/html: a captive portal
	Disguised           // 200 and a web page with another content type
	SlowHeader          // the header arrives one byte at a time
	SlowBody            // the body arrives one byte at a time
	Silent              // no answer
	Denied              // 403 to this request and the next ones: expired credentials
	Missing             // 404 for an existing object
	Stale               // an earlier state of the object: see Faults.Stale
	faultsEnd
)

// AllFaults returns all faults except Honest.
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

// Faults determine how often and how a server fails. The zero value never fails.
type Faults struct {
	// Seed and the number of earlier requests for the same object decide over each request. The order of
	// requests for different objects matters only for bursts.
	Seed uint64
	Rate float64                  // share of the requests that fail, 0 to 1
	Mix  map[Fault]int            // weights
	Only func(*http.Request) bool // selects the requests that may fail; nil selects all

	First      int           // only that many requests for an object may fail; 0 means no limit
	RetryAfter time.Duration // Retry-After of a Throttled answer, in whole seconds
	Length     int           // number of requests that a Burst or Denied affects; 0 means 4
	Drip       time.Duration // between the bytes of slow answers; 0 means 50 ms
	// Stale returns the path of the object to send instead, or "" if the object had no earlier state.
	Stale func(path string) string
}

// Of returns Faults with the given kinds in equal shares.
func Of(seed uint64, rate float64, kinds ...Fault) Faults {
	f := Faults{Seed: seed, Rate: rate, Mix: map[Fault]int{}}
	for _, k := range kinds {
		f.Mix[k] = 1
	}
	return f
}

// newRand returns the random numbers for the n-th request for an object.
func (f Faults) newRand(object string, n int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, object)
	return rand.New(rand.NewPCG(f.Seed, h.Sum64()+uint64(n)<<48))
}

// pickFault picks the fault of a request.
func (f Faults) pickFault(chance *rand.Rand) Fault {
	var all int
	for _, weight := range f.Mix {
		all += weight
	}
	if all == 0 || chance.Float64() >= f.Rate {
		return Honest
	}
	n := chance.IntN(all)
	for k := range faultsEnd { // in a fixed order, unlike a map's
		if n -= f.Mix[k]; n < 0 {
			return k
		}
	}
	panic("netlab: a Mix with negative weights")
}

// numRequests returns the number of requests that a fault affects.
func (f Faults) numRequests(k Fault) int {
	switch {
	case k != Burst && k != Denied:
		return 1
	case f.Length == 0:
		return 4
	}
	return f.Length
}

func (f Faults) dripInterval() time.Duration {
	if f.Drip == 0 {
		return 50 * time.Millisecond
	}
	return f.Drip
}

// applies reports whether a fault is visible in the answer to a request.
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

// refuses reports whether a server with this fault does not carry out the request.
func (k Fault) refuses() bool {
	return slices.Contains([]Fault{ServerError, Burst, Throttled, ThrottledDate, Denied, ResetMidBody, Silent}, k)
}

func isWrite(r *http.Request) bool { return r.Method == http.MethodPut || r.Method == http.MethodPost }
