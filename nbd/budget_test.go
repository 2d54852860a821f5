package nbd

import (
	"testing"
	"time"
)

// TestBudget: options are few; those about exports are as many more as the longest list had exports.
func TestBudget(t *testing.T) {
	b := newBudget(10 * time.Second)
	spend := func(id uint32) (n int) {
		for b.spend(id) == nil {
			n++
		}
		return n
	}
	for range 3 {
		b.grow(100)
	}
	if err := b.spend(optList); err != nil {
		t.Fatal(err)
	}
	if n := spend(optInfo); n != 100*optionsPerName+maxOptions-1 {
		t.Errorf("a client that was shown 100 exports asks %d times about them", n)
	}
	b.grow(110)
	if n := spend(optSetMetaContext); n != 10*optionsPerName {
		t.Errorf("10 exports more are worth %d options", n)
	}
	if n := spend(optList); n != 0 {
		t.Errorf("a client that has asked all it may lists %d times more", n)
	}
}

// TestBudgetTime: a client that was shown many exports has more time in all, and no more for each option.
func TestBudgetTime(t *testing.T) {
	b := newBudget(10 * time.Second)
	start := b.end.Add(-10 * time.Second)
	if at := b.deadline(start.Add(9 * time.Second)); at != b.end {
		t.Errorf("without a list the handshake ends after %v", at.Sub(start))
	}
	b.grow(200)
	for after, want := range map[time.Duration]time.Duration{
		time.Second: 11 * time.Second, 90 * time.Second: 100 * time.Second, 105 * time.Second: 110 * time.Second, time.Hour: 110 * time.Second,
	} {
		if at := b.deadline(start.Add(after)); at.Sub(start) != want {
			t.Errorf("an option that is waited for after %v must be here after %v, want %v", after, at.Sub(start), want)
		}
	}
}
