package crashtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// TestMaxDownload: assemble stops before it exceeds its download limit, and completes in several runs.
func TestMaxDownload(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := single(t, testimages.Random(5, 24*mib))
	s := newSlots(t, 24*mib, 512, "", "")
	const budget = 5 * mib
	for _, target := range []string{s.b, filepath.Join(t.TempDir(), "file")} {
		d := newDepot(t, r)
		for runs := 1; ; runs++ {
			got := run(t, "cairn", "assemble", "--max-download", "5MiB", "--state", "", d.url+"/x.caibx", target)
			if sent := total(d.news()); sent > budget {
				t.Errorf("%d bytes were downloaded, want at most %d", sent, budget)
			}
			if got.status == 0 {
				break
			}
			got.wantFailed(t, failed, "--max-download")
			if runs > 12 {
				t.Fatalf("%s is not done after %d runs", target, runs)
			}
		}
		wantImage(t, target, r.image("x"))
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	r := single(t, testimages.Random(6, 6*mib))
	d := newDepot(t, r)
	begun := time.Now()
	assemble(t, d.url+"/x.caibx", filepath.Join(t.TempDir(), "file"), "--rate-limit", "2MiB")
	if took := time.Since(begun); took < 2*time.Second || took > 20*time.Second {
		t.Errorf("6 MiB at 2 MiB a second took %v", took)
	}
}

// TestTail changes the bytes after the image on its partition, and never those after the partition.
func TestTail(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := single(t, testimages.Random(7, mib+12345))
	s := newSlots(t, 2*mib, 512, "", "")
	size, filler := r.size(t, "x"), slices.Repeat([]byte{0x55}, 2*mib)
	zeros := make([]byte, 2*mib)
	for tail, want := range map[string][]byte{"keep": filler, "zero": zeros, "discard": zeros} {
		patch(t, s.b, filler, 0)
		patch(t, s.a, filler, 0)
		assemble(t, r.index("x"), s.b, "--state", "", "--tail", tail)
		wantImage(t, s.b, r.image("x"))
		rest := make([]byte, 2*mib-size)
		if _, err := openFile(t, s.b).ReadAt(rest, size); err != nil {
			t.Fatal(err)
		}
		if tail == "discard" { // the page in which the image ends may be kept
			rest = rest[4*kib:]
		}
		if !bytes.Equal(rest, want[:len(rest)]) {
			t.Errorf("--tail %s leaves other bytes behind the image", tail)
		}
		if got := sumFrom(t, s.a, 0, 2*mib); got != fmt.Sprintf("%x", filler) {
			t.Errorf("--tail %s has changed the slot before", tail)
		}
	}
}

// TestExec: the hook runs when the image is on the medium, as it sees below the device, with the result on stdin. It
// never runs after a failure.
func TestExec(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := single(t, testimages.Random(8, 2*mib))
	dir := t.TempDir()
	s := newSlots(t, 2*mib, 512, "", "")
	backing := strings.TrimSpace(must(t, "losetup", "--noheadings", "--output", "BACK-FILE", s.disk))
	hook := filepath.Join(dir, "hook")
	script := fmt.Sprintf("#!/bin/sh\ncat >%s/stdin\nexec cmp -n %d %s %s 0 %d\n",
		dir, 2*mib, r.image("x"), backing, 4*mib) // the offset of the second slot
	if err := os.WriteFile(hook, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--state", "", "--exec", hook, r.index("x"), s.b}
	fails(t, notFound, "", append([]string{"assemble", "-s", t.TempDir()}, args...)...)
	if _, err := os.Stat(filepath.Join(dir, "stdin")); err == nil {
		t.Error("the hook was run after a failure")
	}
	assemble(t, args...)
	var told struct {
		Target string
		Done   int64
		Digest string `json:"index_digest"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "stdin"))
	if err == nil {
		err = json.Unmarshal(text, &told)
	}
	if err != nil || told.Target != s.b || told.Done != 2*mib || told.Digest != r.read(t, "x").Digest().String() {
		t.Errorf("the hook was told %s, %v", text, err)
	}
	got := run(t, "cairn", "assemble", "--state", "", "--exec", "false", r.index("x"), s.b)
	got.wantFailed(t, failed, "holds the image, but running false")
}

// TestState: the content of a device is remembered, checked before it is used, and never required.
func TestState(t *testing.T) {
	t.Parallel()
	r := published(t, ext4)
	d, s, state := newDepot(t, r), slotsOf(t, r, ""), t.TempDir()
	scans := func(state string, more ...string) bool {
		t.Helper()
		args := append([]string{"assemble", d.url + "/b.caibx", s.b, "--seed", s.a, "--state", state}, more...)
		got := run(t, "cairn", args...)
		if got.status != 0 {
			t.Fatalf("%+v", got)
		}
		wantImage(t, s.b, r.image("b"))
		return strings.Contains(got.stderr, "scanning "+s.a)
	}
	if !scans(state) || scans(state) {
		t.Error("the first time the seed is to be scanned, and not the second time")
	}
	if !scans("") {
		t.Error("without a state the seed is to be scanned each time")
	}

	patch(t, s.a, testimages.Random(4, 30*mib), head) // another content, the same superblock
	patch(t, s.b, make([]byte, 12*mib), 4*mib)
	if !scans(state) {
		t.Error("the seed was believed to hold what it does not")
	}
	patch(t, s.a, testimages.Random(5, mib), 9*mib) // a small change
	patch(t, s.b, make([]byte, 12*mib), 4*mib)
	if scans(state) {
		t.Error("the seed was scanned again because a little has changed")
	}

	nowhere := filepath.Join(r.image("a"), "state") // a directory cannot be below a file
	got := run(t, "cairn", "assemble", r.index("c"), s.b, "--state", nowhere)
	if got.status != 0 || !strings.Contains(got.stderr, "warning: cannot remember") {
		t.Errorf("with a state that cannot be written: %+v", got)
	}
}

// TestUnfinishedIsRemembered: the run after an interrupted one reports it.
func TestUnfinishedIsRemembered(t *testing.T) {
	t.Parallel()
	r := published(t, ext4)
	d, s, state := newDepot(t, r), slotsOf(t, r, r.image("c")), t.TempDir()
	args := []string{"assemble", d.url + "/b.caibx", s.b, "--state", state}
	isNoted := func(int) bool {
		notes, _ := filepath.Glob(filepath.Join(state, "*.unfinished"))
		return len(notes) > 0
	}
	j := d.startAndKillWhen(t, isNoted, append(args, "--memory", "1MiB", "--fetches", "1")...)
	if got := j.wait(t); got.status != -1 {
		t.Fatalf("not killed: %+v", got)
	}
	d.meanwhile(nil)
	for _, want := range []bool{true, false} {
		got := run(t, "cairn", args...)
		if got.status != 0 || strings.Contains(got.stderr, "was not finished") != want {
			t.Errorf("want told of unfinished work: %v\n%+v", want, got)
		}
	}
	wantImage(t, s.b, r.image("b"))
}
