package nbd_test

import (
	"encoding/json"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// contextDevice is a device with metadata contexts of its own.
type contextDevice struct {
	*lazy
	contexts []string
	states   []nbd.State
}

func (d contextDevice) Contexts() []string { return d.contexts }

// States yields the states of the first context, with bit 0 inverted for the second.
func (d contextDevice) States(context string, off, n int64) iter.Seq[nbd.State] {
	return func(yield func(nbd.State) bool) {
		at := int64(0)
		for _, s := range d.states {
			from, to := max(at, off), min(at+s.Length, off+n)
			at += s.Length
			bits := s.Bits
			if context != d.contexts[0] {
				bits ^= 1
			}
			if from < to && !yield(nbd.State{Length: to - from, Bits: bits}) {
				return
			}
		}
	}
}

func newContextDevice() contextDevice {
	return contextDevice{
		lazy:     newLazy(data(8*kib), zero(8*kib), data(16*kib)),
		contexts: []string{"x-test:near", "x-test:far"},
		states:   []nbd.State{{Length: 4 * kib, Bits: 1}, {Length: 4 * kib, Bits: 1}, {Length: 100}, {Length: 0, Bits: 7}, {Length: 8 * kib, Bits: 1}},
	}
}

func TestDeviceContexts(t *testing.T) {
	const base = "base:allocation"
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: newContextDevice()}, &nbd.Export{Name: "plain", Device: &plain{size: 4096}})
	c := r.dialClient(t)
	if err := c.StructuredReplies(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		set     bool
		export  string
		queries []string
		want    []string
	}{
		{false, "x", nil, []string{base, "x-test:near", "x-test:far"}},
		{false, "x", []string{"x-test:"}, []string{"x-test:near", "x-test:far"}},
		{false, "x", []string{"x-test:", "x-test:near", "base:"}, []string{base, "x-test:near", "x-test:far"}},
		{false, "x", []string{"x-test:nea", "x-tes:", "x-test"}, nil},
		{false, "plain", nil, []string{base}},
		{true, "plain", []string{"x-test:near", base}, []string{base}},
		{true, "x", []string{"x-test:"}, nil},
		{true, "x", nil, nil},
		{true, "x", []string{"x-test:far", "x-test:far"}, []string{"x-test:far"}},
		{true, "x", []string{"x-test:far", base, "x-test:near"}, []string{base, "x-test:near", "x-test:far"}},
	} {
		ask := c.ListMetaContexts
		if tc.set {
			ask = c.SetMetaContexts
		}
		got, err := ask(tc.export, tc.queries...)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("contexts of %q for %q (set: %v): %v\n%s", tc.export, tc.queries, tc.set, err, diff)
		}
	}
	if _, err := c.ListMetaContexts("absent"); optionErrorType(t, err) != nbdtest.RepErrUnknown {
		t.Errorf("contexts of an unknown export: %v", err)
	}
}

// TestContextsTogether: each selected context has its own extents in one reply.
func TestContextsTogether(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: newContextDevice()})
	c := r.dialClient(t)
	if err := c.StructuredReplies(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetMetaContexts("x", "x-test:far", "base:allocation", "x-test:near"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go("x"); err != nil {
		t.Fatal(err)
	}
	for flags, want := range map[uint16]map[string][]nbdtest.Extent{
		0: {
			"base:allocation": {{Length: 8 * kib}, {Length: 8 * kib, State: 3}, {Length: 16 * kib}},
			"x-test:near":     {{Length: 8 * kib, State: 1}, {Length: 100}, {Length: 8 * kib, State: 1}, {Length: 16*kib - 100}},
			"x-test:far":      {{Length: 8 * kib}, {Length: 100, State: 1}, {Length: 24*kib - 100}},
		},
		nbdtest.CmdFlagReqOne: {
			"base:allocation": {{Length: 8 * kib}}, "x-test:near": {{Length: 8 * kib, State: 1}}, "x-test:far": {{Length: 8 * kib}},
		},
	} {
		reply, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdBlockStatus, Flags: flags, Length: 32 * kib})
		if diff := cmp.Diff(want, reply.States); diff != "" || err != nil {
			t.Errorf("block status, flags %#x: %v\n%s", flags, err, diff)
		}
	}
}

func TestNBDInfoMapOfDeviceContext(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: newContextDevice()})
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(mustRun(t, "nbdinfo", "--map=x-test:near", "--json", r.uri("x"))), &extents); err != nil {
		t.Fatal(err)
	}
	var types []int64
	for _, e := range extents {
		types = append(types, e.Type)
	}
	if !slices.Equal(types, []int64{1, 0, 1, 0}) {
		t.Errorf("nbdinfo --map=x-test:near says %+v", extents)
	}
	if out := mustRun(t, "nbdinfo", r.uri("x")); !strings.Contains(out, "x-test:far") {
		t.Errorf("nbdinfo says:\n%s", out)
	}
}
