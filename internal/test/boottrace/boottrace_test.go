package boottrace

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small returns a boot: two concurrent reads after the first, and one after both.
func small() *Trace {
	return &Trace{[]Read{
		{0, 4096, -1, 0}, {8192, 512, 0, time.Second}, {1 << 20, 4096, 0, time.Second}, {4096, 4096, 2, time.Minute},
	}}
}

func TestEncode(t *testing.T) {
	got, err := Decode(bytes.NewReader(small().Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small(), got); diff != "" {
		t.Errorf("Decode(Encode) (-want +got):\n%s", diff)
	}
	for name, p := range map[string][]byte{"nothing": nil, "no gzip": []byte("hello"), "cut": small().Encode()[:20]} {
		if _, err := Decode(bytes.NewReader(p)); err == nil {
			t.Errorf("Decode of %s succeeds", name)
		}
	}
}

func TestShape(t *testing.T) {
	s := Shape{{0, 100, 50}, {1, 200, 60}, {-1, 300, 0}, {-1, 300, 0}, {-1, 10, 0}, {0, 100, 50}, {7, 5, 5}}
	got, err := DecodeShape(bytes.NewReader(s.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Errorf("DecodeShape(Encode) (-want +got):\n%s", diff)
	}
}

// TestReplay: each read starts after the answer that it waits for, and concurrent reads overlap.
func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace := small()
		if got := trace.Think(); got != time.Second+time.Minute {
			t.Errorf("Think = %v", got)
		}
		w, err := trace.Replay(t.Context(), func(context.Context, []byte, int64) error {
			time.Sleep(10 * time.Second)
			return nil
		})
		if err != nil || w.Stalled != 30*time.Second || w.Sum != 40*time.Second || w.Waiting != 30*time.Second || w.Total != w.Stalled+trace.Think() {
			t.Errorf("Replay = %+v, %v, want 30s stalled, 40s in all reads", w, err)
		}
		fault := errors.New("no disk")
		if _, err := trace.Replay(t.Context(), func(context.Context, []byte, int64) error { return fault }); !errors.Is(err, fault) {
			t.Errorf("Replay on a broken disk = %v, want %v", err, fault)
		}
	})
}

func TestFromObserved(t *testing.T) {
	at := func(ms int) time.Time { return time.Time{}.Add(time.Duration(ms) * time.Millisecond) }
	got := FromObserved([]Observed{
		{4096, 512, at(30), at(35)}, {0, 4096, at(0), at(10)}, {512, 512, at(12), at(20)}, {1024, 512, at(13), at(40)},
	})
	ms := time.Millisecond
	want := &Trace{[]Read{{0, 4096, -1, 0}, {512, 512, 0, 2 * ms}, {1024, 512, 0, 3 * ms}, {4096, 512, 1, 10 * ms}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FromObserved (-want +got):\n%s", diff)
	}
}
