package fetch

import "time"

// Link is a model of the link to a store. It must be safe for concurrent use. *supply.Link implements it.
type Link interface {
	// Product returns the link's bandwidth-delay product in bytes.
	Product() int64
	// Budget returns how many bytes of prefetches may be in flight without delaying a demand fetch by more than
	// delay.
	Budget(delay time.Duration) int64
}

const (
	assumedProduct = 256 << 10 // bytes
	assumedBudget  = 1 << 20   // bytes
)

// assumedLink is the Link of a source without one.
type assumedLink struct{}

func (assumedLink) Product() int64             { return assumedProduct }
func (assumedLink) Budget(time.Duration) int64 { return assumedBudget }
