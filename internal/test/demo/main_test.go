package main

import "testing"

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"images"}, {"images", "a", "b"}, {"copy", "a"}, {"other", "a"}} {
		if err := run(t.Context(), args); err == nil || err.Error() != usage {
			t.Errorf("run(%q) = %v, want the usage", args, err)
		}
	}
}
