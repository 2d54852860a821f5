package fetch

import "time"

// Link is what is known of the link to a store. Safe for concurrent use. *supply.Link implements it.
type Link interface {
	// Product returns how many bytes the link holds: its rate times its round trip.
	Product() int64
	// Budget returns how many bytes of prefetches may be in flight, so that they delay a demand fetch by so much at most.
	Budget(delay time.Duration) int64
}

const (
	assumedProduct = 256 << 10
	assumedBudget  = 1 << 20
)

// assumedLink is the Link of a store about which nothing is known.
type assumedLink struct{}

func (assumedLink) Product() int64             { return assumedProduct }
func (assumedLink) Budget(time.Duration) int64 { return assumedBudget }
