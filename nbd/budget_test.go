package nbd

import (
	"testing"
	"time"
)

// TestBudget: a client may send maxOptions options. Options about exports are free up to
// optionsPerName for each export of the longest list.
func TestBudget(t *testing.T) {
	b := newBudget(10 * time.Second)
	spend := func(id uint32) (n int) {
		for b.spendOption(id) == nil {
			n++
		}
		return n
	}
	for range 3 {
		b.extendForList(100)
	}
	if err := b.spendOption(optList); err != nil {
		t.Fatal(err)
	}
	if n := spend(optInfo); n != 100*optionsPerName+maxOptions-1 {
		t.Errorf("a client that was shown 100 exports asks %d times about them", n)
	}
	b.extendForList(110)
	if n := spend(optSetMetaContext); n != 10*optionsPerName {
		t.Errorf("10 exports more are worth %d options", n)
	}
	if n := spend(optList); n != 0 {
		t.Errorf("a client that has asked all it may lists %d times more", n)
	}
}

// TestBudgetTime: a list of many exports extends the deadline of the handshake, but not the time
// for each option.
func TestBudgetTime(t *testing.T) {
	b := newBudget(10 * time.Second)
	start := b.end.Add(-10 * time.Second)
	if at := b.optionDeadline(start.Add(9 * time.Second)); at != b.end {
		t.Errorf("without a list the handshake ends after %v", at.Sub(start))
	}
	b.extendForList(200)
	for after, want := range map[time.Duration]time.Duration{
		time.Second: 11 * time.Second, 90 * time.Second: 100 * time.Second, 105 * time.Second: 110 * time.Second, time.Hour: 110 * time.Second,
	} {
		if at := b.optionDeadline(start.Add(after)); at.Sub(start) != want {
			t.Errorf("an option that is waited for after %v must be here after %v, want %v", after, at.Sub(start), want)
		}
	}
}
