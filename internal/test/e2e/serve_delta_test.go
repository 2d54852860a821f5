package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// The messages of a server about its delta.
const (
	deltaIsUsed = `msg="a delta is used"`
	noDelta     = `msg="no delta is used"`
)

// noTimeLimit is a rate limit with which requests for a delta have no time limit: a busy machine does not change the
// outcome.
const noTimeLimit = "--rate-limit=1TiB"

// copyServed serves release b of a web server with seeds and other flags, waits for a message, and copies the image. Then
// it stops the server, and returns the messages.
func (r release) copyServed(t testing.TB, url, message string, args ...string) string {
	t.Helper()
	served := serve(t, 1, append([]string{url + "/b.caibx", noTimeLimit}, args...)...)
	served.stderr.await(t, message)
	copyAs(t, served.uris[0], r.b)
	served.signal(t, os.Interrupt)
	served.wantStopped(t)
	return served.stderr.String()
}

// TestServeDelta: from a server with the old release as a seed, nbdcopy gets the new release. With a delta, the web
// server sends less than with the seed alone.
func TestServeDelta(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	for _, p := range []pair{edited(t), large(t)} {
		r := withDelta(t, p)
		url, sent := newDeltaServer(t, r.dir, true)
		known := r.a + "=" + r.index("a")
		r.copyServed(t, url, "a seed is ready", "--seed", known, "--no-delta")
		without := sent()
		if without.delta != 0 {
			t.Errorf("%s: --no-delta requests the delta: %+v", p.name, without)
		}
		for _, seed := range []string{known, r.a} {
			r.copyServed(t, url, deltaIsUsed, "--seed", seed)
			with := sent()
			t.Logf("%s, %s: %+v instead of %+v", p.name, seed, with, without)
			if with.bytes*10 > without.bytes*8 || with.delta == 0 {
				t.Errorf("%s: %+v with a delta, and %+v without", p.name, with, without)
			}
		}
		cache := filepath.Join(t.TempDir(), "cache")
		r.copyServed(t, url, deltaIsUsed, "--seed", known, "--cache", cache)
		sent()
		r.copyServed(t, url, "a seed is ready", "--seed", known, "--cache", cache)
		if again := sent(); again.bytes > 30_000 { // the list of the deltas
			t.Errorf("%s: %+v for an image in the cache", p.name, again)
		}
	}
}

// TestServeDeltaWithoutRanges: a server that sends files only as a whole costs no more than the chunks, and what is read
// of the delta's first answer.
func TestServeDeltaWithoutRanges(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := withDelta(t, large(t))
	url, sent := newDeltaServer(t, r.dir, false)
	known := r.a + "=" + r.index("a")
	r.copyServed(t, url, "a seed is ready", "--seed", known, "--no-delta")
	without := sent()
	r.copyServed(t, url, noDelta, "--seed", known)
	if with := sent(); with.delta != 1 {
		t.Errorf("%+v, and %+v without a delta", with, without)
	}
}

// TestServeDeltaIsAHint: whatever is wrong with the files of a delta or the seed, the image is right.
func TestServeDeltaIsAHint(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := withDelta(t, large(t))
	whole, list := readFile(t, r.theDelta(t)), readFile(t, r.deltaFile(t, "list"))
	url, _ := newDeltaServer(t, r.dir, true)
	flip := func(b []byte, from, step int) []byte {
		b = bytes.Clone(b)
		for at := from; at < len(b); at += step {
			b[at] ^= 1
		}
		return b
	}
	known := r.a + "=" + r.index("a")
	for name, c := range map[string]struct {
		delta, list []byte
		message     string
	}{
		"truncated": {whole[:len(whole)/2], list, noDelta}, "empty": {[]byte{}, list, noDelta}, "no list": {whole, nil, "a seed is ready"},
		"damaged list": {whole, flip(list, 80, 1000), noDelta}, "a page": {bytes.Repeat([]byte("<html>"), 1000), list, noDelta},
		"damaged head": {flip(whole, 50, len(whole)), list, noDelta}, "damaged payloads": {flip(whole, 20_000, 100_000), list, deltaIsUsed},
		"only damaged payloads": {flip(whole, 20_000, 500), list, deltaIsUsed},
	} {
		for path, data := range map[string][]byte{r.theDelta(t): c.delta, r.deltaFile(t, "list"): c.list} {
			if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if data != nil {
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		text := r.copyServed(t, url, c.message, "--seed", known)
		if c.message != deltaIsUsed && strings.Contains(text, deltaIsUsed) {
			t.Errorf("%s: a delta is used:\n%s", name, text)
		}
	}
	for path, data := range map[string][]byte{r.theDelta(t): whole, r.deltaFile(t, "list"): list} {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	other := writeFile(t, t.TempDir(), "other", testimages.Random(77, 4*mib))
	r.copyServed(t, url, deltaIsUsed, "--seed", other+"="+r.index("a"))
}

// TestServeDeltaChanges: the seed is written, and the delta removed, while the image is served.
func TestServeDeltaChanges(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := withDelta(t, large(t))
	url, sent := newDeltaServer(t, r.dir, true)
	s := newSlots(t, r, false)
	served := serve(t, 1, url+"/b.caibx", noTimeLimit, "--seed", s.a+"="+r.index("a"))
	served.stderr.await(t, deltaIsUsed)
	s.change(t)
	copyAs(t, served.uris[0], r.b)
	if got := sent(); got.delta < 10 {
		t.Errorf("the delta is not used with a changed seed: %+v", got)
	}
	served = serve(t, 1, url+"/b.caibx", noTimeLimit, "--seed", r.a+"="+r.index("a"))
	served.stderr.await(t, deltaIsUsed)
	if err := os.Remove(r.theDelta(t)); err != nil {
		t.Fatal(err)
	}
	copyAs(t, served.uris[0], r.b)
	served.stderr.await(t, "the delta is not used any more")
}

// TestServeDeltaShown: status, metadata context and metrics show deltas as a tier.
func TestServeDeltaShown(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	need.Tool(t, "nbdinfo")
	r := withDelta(t, large(t))
	metrics := "unix:" + filepath.Join(socketDir(t), "m")
	s := serve(t, 1, newNginx(t, r.dir).url+"/b.caibx", noTimeLimit, "--seed", r.a+"="+r.index("a"),
		"--metrics", metrics)
	s.stderr.await(t, deltaIsUsed)
	text := must(t, "nbdinfo", "--map=x-cairn:cached", "--totals", s.uris[0])
	if !strings.Contains(text, " 4\n") && !strings.Contains(text, " 4 ") {
		t.Errorf("no bytes are in the delta:\n%s", text)
	}
	type status struct {
		Exports []struct {
			InDeltas int64 `json:"in_deltas_bytes"`
			Chunks   int64 `json:"delta_chunks"`
			Bytes    int64 `json:"delta_bytes"`
		} `json:"exports"`
	}
	var before, after status
	parse(t, cairn(t, "status", metrics, "--json"), &before)
	copyAs(t, s.uris[0], r.b)
	late := time.Now().Add(patience)
	for { // the server caches an answer for a moment
		parse(t, cairn(t, "status", metrics, "--json"), &after)
		if after.Exports[0] != before.Exports[0] || time.Now().After(late) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	e, was := after.Exports[0], before.Exports[0]
	if was.InDeltas == 0 || e.InDeltas != 0 || e.Chunks == 0 || e.Bytes == 0 || e.Bytes > was.InDeltas {
		t.Errorf("the export was %+v, and is %+v", was, e)
	}
	if text := cairn(t, "status", metrics); !strings.Contains(text, "DELTAS") {
		t.Errorf("cairn status does not show deltas:\n%s", text)
	}
}
