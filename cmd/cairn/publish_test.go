package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/storetest"
	"cairn/testimages"
)

// remoteStore is a store behind a network.
type remoteStore struct {
	make   func(t *testing.T, index, image string, bases ...string) makeResult // makes an index and its chunks in the store
	counts func() storetest.Counts                                             // the requests so far
}

// checkPublishCosts makes two releases in an empty store, and limits the numbers of requests. A real server is tested by
// running make on its location behind storetest.CountingProxy.
func checkPublishCosts(t *testing.T, s remoteStore) {
	a, b := releases(t)
	before := s.counts()
	spent := func() storetest.Counts {
		now := s.counts()
		defer func() { before = now }()
		return now.Sub(before)
	}
	s.make(t, "a.caibx", a)
	spent()
	for _, c := range []struct {
		name  string
		index string
		image string
		bases []string
		isNew bool
	}{
		{"the next release", "b.caibx", b, nil, true},
		{"the same again", "b.caibx", b, nil, false},
		{"under another name, with bases", "c.caibx", b, []string{"a.caibx", "b.caibx"}, false},
	} {
		made := s.make(t, c.index, c.image, c.bases...)
		got := spent()
		t.Logf("%s: %d chunks, %d new: %+v", c.name, made.Chunks, made.New, got)
		if c.isNew != (made.New > 0) {
			t.Errorf("%s: %d chunks are new", c.name, made.New)
		}
		if want := made.New + 1; got.Puts < want || c.isNew && got.Puts > want+5 || !c.isNew && got.Puts > want {
			t.Errorf("%s: %d PUTs for %d new chunks and the index", c.name, got.Puts, made.New)
		}
		if got.Heads > int64(made.Chunks/100) {
			t.Errorf("%s: %d HEADs for %d chunks", c.name, got.Heads, made.Chunks)
		}
		if len(c.bases) > 0 && got.Lists > 0 {
			t.Errorf("%s: %d listings", c.name, got.Lists)
		}
	}
}

// releases writes two images. The second one has 3 MiB that the first one lacks.
func releases(t *testing.T) (a, b string) {
	t.Helper()
	dir, old := t.TempDir(), testimages.Random(1, 60<<20)
	a, b = filepath.Join(dir, "a.img"), filepath.Join(dir, "b.img")
	next := slices.Concat(old[:20<<20], testimages.Random(2, 1<<20), old[20<<20:50<<20], testimages.Random(3, 2<<20), old[51<<20:])
	if err := errors.Join(os.WriteFile(a, old, 0o644), os.WriteFile(b, next, 0o644)); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestPublishCosts limits the requests of make to a store behind a network.
func TestPublishCosts(t *testing.T) {
	r := &storetest.Remote{Full: new(mem.Bucket)}
	checkPublishCosts(t, remoteStore{counts: r.Counts, make: func(t *testing.T, index, image string, bases ...string) makeResult {
		return mustMakeInto(t, r, index, image, publish{bases: saveIndexes(t, r.Full, bases), uploads: 8})
	}})
}

// saveIndexes copies indexes from the bucket to files.
func saveIndexes(t *testing.T, b store.Reader, names []string) (files []locate.Location) {
	t.Helper()
	for _, name := range names {
		data, err := b.Read(t.Context(), name, nil, 1<<20)
		file := filepath.Join(t.TempDir(), name)
		if err := errors.Join(err, os.WriteFile(file, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		files = append(files, locate.Path(file))
	}
	return files
}

// mustMakeInto runs make into a bucket that has no location.
func mustMakeInto(t *testing.T, b store.Bucket, index, image string, p publish) makeResult {
	t.Helper()
	f := makeFlags{params: chunker.Default, compression: compression{form: "zstd", level: 3}, publish: p}
	f.jobs, f.json, f.progress, f.index = 2, true, progressNone, locate.Path(index)
	var err error
	if f.store, err = locate.Parse("https://in.memory/"); err != nil { // a remote location, which is not used
		t.Fatal(err)
	}
	src, err := ingest.Open(t.Context(), image, ingest.Whole)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	out, err := release.OutletIn(t.Context(), b, locate.Location{}, index, release.OutletOptions{CreateOnly: p.createOnly})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	var made makeResult
	err = makeInto(t.Context(), b, out, src, f, image, &stdout)
	if err := errors.Join(err, json.Unmarshal(stdout.Bytes(), &made)); err != nil {
		t.Fatal(err)
	}
	return made
}

// TestBaseIsLeftOut: all chunks are stored if the store lacks those of the base.
func TestBaseIsLeftOut(t *testing.T) {
	r := &storetest.Remote{Full: new(mem.Bucket)}
	a, b := releases(t)
	mustMakeInto(t, r, "a.caibx", a, publish{uploads: 8})
	base := saveIndexes(t, r.Full, []string{"a.caibx"})
	emptied := &storetest.Remote{Full: new(mem.Bucket)}
	made := mustMakeInto(t, emptied, "b.caibx", b, publish{uploads: 8, bases: base})
	if made.New != int64(made.Distinct) {
		t.Errorf("%d of %d chunks are put into an empty store", made.New, made.Distinct)
	}
}

// TestBaseShowsNoSecret: messages about a base do not contain the secret in its location.
func TestBaseShowsNoSecret(t *testing.T) {
	builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1, Avg: 1, Max: 1})
	if err == nil {
		_, err = builder.Add(1, blob.Digest{1})
	}
	if err != nil {
		t.Fatal(err)
	}
	index := builder.Index().Encode()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(index) }))
	defer server.Close()
	var messages bytes.Buffer
	stderr = &messages
	defer func() { stderr = os.Stderr }()
	at, err := locate.Parse(server.URL + "/a.caibx?key=secret")
	if err != nil {
		t.Fatal(err)
	}
	f := publish{bases: []locate.Location{at}}
	bases, err := f.readBases(t.Context(), access{})
	if err != nil {
		t.Fatal(err)
	}
	want := release.PublisherOptions{
		Algorithm: blob.SHA256, Params: blob.Params{Min: 1, Avg: 1, Max: 1}, Bases: bases, Notes: logReleaseNote,
	}
	if _, err := release.NewPublisher(t.Context(), new(mem.Bucket), want); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a base with other digests: %v", err)
	}
	want.Algorithm = blob.SHA512_256
	if _, err := release.NewPublisher(t.Context(), new(mem.Bucket), want); err != nil || !strings.Contains(messages.String(), "is not used") {
		t.Errorf("a base that is not there: %v, with the messages %s", err, &messages)
	}
	if strings.Contains(messages.String(), "secret") {
		t.Errorf("the messages are %s", &messages)
	}
}
