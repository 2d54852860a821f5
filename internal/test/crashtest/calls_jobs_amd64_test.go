package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/callfault"
	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/nbd/nbdtest"
	"cairn/store/storetest"
	"cairn/testimages"
)

// callInput is the input of all jobs: two releases and their servers.
type callInput struct {
	releases
	web string
	s3  *storetest.S3Server
	put string // a directory and the URL of a server that accepts uploads into it
	url string
}

func newCallInput(t *testing.T) *callInput {
	t.Helper()
	in := &callInput{releases: releases{t.TempDir()}}
	random := testimages.Random(21, 800*kib)
	a := random[:600*kib]
	b := slices.Concat(random[:200*kib], make([]byte, 300*kib), random[600*kib:], random[320*kib:420*kib],
		random[:100*kib])
	for name, data := range map[string][]byte{"a": a, "b": b} {
		if err := os.WriteFile(in.image(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		in.publish(t, name)
	}
	index := filepath.Join(t.TempDir(), "a.caibx")
	must(t, "cairn", "make", index, in.image("a"), "-s", filepath.Join(in.dir, "a.castr"))
	in.web = newDepot(t, in.releases).url
	in.put = t.TempDir()
	in.url = storetest.Nginx(t, in.put, storetest.WebDAV)
	in.s3 = storetest.S3(t, storetest.S3Options{})
	in.s3.Bucket(t, "images")
	t.Setenv("AWS_ACCESS_KEY_ID", in.s3.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", in.s3.SecretKey)
	return in
}

// jobs returns all jobs.
func (in *callInput) jobs(t *testing.T) []callJob {
	s3 := filepath.Join(in.s3.Dir, "images")
	jobs := []callJob{
		in.makeJob(),
		in.deltaJob(),
		in.publishJob("publish to a web server", in.put, in.url),
		in.publishJob("publish to S3", s3, in.s3.Location("images", "")),
		in.assembleJob("assemble", in.dir),
		in.assembleJob("assemble from a web server", in.web),
		in.copyJob(),
		in.collectJob(),
		in.catJob(),
		in.serveJob("serve", in.dir, "none"),
		in.serveJob("serve from a web server", in.web, "all"),
	}
	if os.Geteuid() == 0 || need.CI() {
		jobs = append(jobs, in.deviceJob(t))
	} else {
		t.Log("without root no device is written")
	}
	return jobs
}

// wantFile checks that a file is complete: it equals the file new if the job is done, else old or new. old is "" if
// there was no file.
func wantFile(path, old, new string, done bool) error {
	got, err := os.ReadFile(path)
	if err != nil && (done || old != "" || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	switch {
	case err != nil:
		return nil
	case same(got, new), !done && old != "" && same(got, old):
		return nil
	}
	return fmt.Errorf("%s is neither old nor new", path)
}

func same(p []byte, file string) bool {
	q, err := os.ReadFile(file)
	return err == nil && bytes.Equal(p, q)
}

// wantPublished checks an index and its chunks.
func (in *callInput) wantPublished(t testing.TB, index, store, old string, done bool) error {
	oldIndex := ""
	if old != "" {
		oldIndex = in.index(old)
	}
	if err := wantFile(index, oldIndex, in.index("b"), done); err != nil {
		return err
	}
	return errors.Join(in.wantStored(t, index, store), wantSoundStore(t, store))
}

// wantStored checks that the chunks of an index that is there are in the store.
func (in *callInput) wantStored(t testing.TB, index, store string) error {
	data, err := os.ReadFile(index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	image := "b"
	if same(data, in.index("a")) {
		image = "a"
	}
	got := run(t, "cairn", "cat", index, "-s", store)
	if got.status != 0 || !same([]byte(got.stdout), in.image(image)) {
		return fmt.Errorf("%s is there without all of its chunks: %s", index, got.stderr)
	}
	return nil
}

// wantSoundStore checks that every chunk in a store that is there is right.
func wantSoundStore(t testing.TB, store string) error {
	if _, err := os.Stat(store); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if got := run(t, "cairn", "store", "verify", store); got.status != 0 {
		return fmt.Errorf("the store has damaged chunks: %s", got.stderr)
	}
	return nil
}

// makeJob replaces release a by b, in a store that holds a.
func (in *callInput) makeJob() callJob {
	return callJob{name: "make",
		prepare: func(t testing.TB, dir string) []string {
			in.copyRelease(t, dir)
			return []string{"make", filepath.Join(dir, "x.caibx"), in.image("b"), "-s", filepath.Join(dir, "s.castr")}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			return in.wantPublished(t, filepath.Join(dir, "x.caibx"), filepath.Join(dir, "s.castr"), "a", done)
		},
	}
}

// deltaJob is makeJob with a delta from a to b. wantPublished verifies the deltas that are listed.
func (in *callInput) deltaJob() callJob {
	j := in.makeJob()
	prepare, judge := j.prepare, j.judge
	j.name = "make with a delta"
	j.prepare = func(t testing.TB, dir string) []string {
		return append(prepare(t, dir), "--delta-from", in.index("a"), "--keep-last", "1")
	}
	j.judge = func(t testing.TB, dir string, done bool, r callfault.Result) error {
		if got := run(t, "cairn", "store", "stat", filepath.Join(dir, "s.castr")); done && !strings.Contains(got.stdout, "deltas  1,") {
			return fmt.Errorf("make has published no delta: %s", got.stdout)
		}
		return judge(t, dir, done, r)
	}
	return j
}

// copyRelease writes release a's index and chunks, as x.caibx and s.castr.
func (in *callInput) copyRelease(t testing.TB, dir string) {
	t.Helper()
	must(t, "cp", in.index("a"), filepath.Join(dir, "x.caibx"))
	must(t, "cp", "-r", filepath.Join(in.dir, "a.castr"), filepath.Join(dir, "s.castr"))
}

// publishJob publishes release b into the empty directory root of a server at a location.
func (in *callInput) publishJob(name, root, location string) callJob {
	return callJob{name: name,
		prepare: func(t testing.TB, dir string) []string {
			if err := os.MkdirAll(filepath.Join(root, filepath.Base(dir)), 0o755); err != nil {
				t.Fatal(err)
			}
			index := location + "/" + filepath.Base(dir) + "/x.caibx"
			return []string{"make", index, in.image("b"), "--patience", "20s"}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			at := filepath.Join(root, filepath.Base(dir))
			return in.wantPublished(t, filepath.Join(at, "x.caibx"), filepath.Join(at, "default.castr"), "", done)
		},
	}
}

// assembleJob replaces a file with release a by b, with two seeds, two stores and a cache of chunks.
func (in *callInput) assembleJob(name, from string) callJob {
	return callJob{name: name,
		prepare: func(t testing.TB, dir string) []string {
			must(t, "cp", in.image("a"), filepath.Join(dir, "seed"))
			must(t, "cp", in.image("a"), filepath.Join(dir, "out"))
			must(t, "cp", in.image("a"), filepath.Join(dir, "short"))
			must(t, "truncate", "-s", "300K", filepath.Join(dir, "short"))
			patch(t, filepath.Join(dir, "seed"), make([]byte, 64*kib), 100*kib)
			return []string{"assemble", from + "/b.caibx", filepath.Join(dir, "out"),
				"-s", filepath.Join(in.dir, "a.castr"), "-s", from + "/default.castr", "--cache", filepath.Join(dir, "cache"),
				"--seed", filepath.Join(dir, "seed"), "--seed", filepath.Join(dir, "short"),
				"--state", filepath.Join(dir, "state"), "--patience", "20s"}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			return errors.Join(wantFile(filepath.Join(dir, "out"), in.image("a"), in.image("b"), done),
				wantSoundStore(t, filepath.Join(dir, "cache")))
		},
	}
}

// deviceJob writes release b over a, onto a device.
func (in *callInput) deviceJob(t testing.TB) callJob {
	node := looptest.Attach(t, looptest.File(t, 2*mib), 512)
	size := in.size(t, "b")
	var was, will [32]byte
	return callJob{name: "assemble onto a device",
		prepare: func(t testing.TB, dir string) []string {
			fill(t, node, in.image("a"))
			was, will = sum(t, node, size), sum(t, in.image("b"), size)
			return []string{"assemble", in.web + "/b.caibx", node, "--state", filepath.Join(dir, "state"),
				"--seed", in.image("a"), "--patience", "20s"}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			now := sum(t, node, size)
			switch {
			case now == will, !done && now == was:
				return nil
			case done:
				return errors.New("the device does not hold the image")
			}
			got := run(t, "cairn", "verify", in.index("b"), node)
			if got.status != damaged || !strings.Contains(got.stderr, "not finished") {
				return fmt.Errorf("the device holds neither image, and is not marked: %s", got.stderr)
			}
			return nil
		},
	}
}

func (in *callInput) copyJob() callJob {
	return callJob{name: "store copy",
		prepare: func(t testing.TB, dir string) []string {
			to := filepath.Join(dir, "s.castr")
			return []string{"store", "copy", filepath.Join(in.dir, "default.castr"), to, in.index("b"), "--indexes-to", dir}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			return in.wantPublished(t, filepath.Join(dir, "b.caibx"), filepath.Join(dir, "s.castr"), "", done)
		},
	}
}

// collectJob removes release a and its chunks, beside release b.
func (in *callInput) collectJob() callJob {
	return callJob{name: "repo gc",
		prepare: func(t testing.TB, dir string) []string {
			for _, name := range []string{"a", "b"} {
				must(t, "cairn", "make", filepath.Join(dir, name+".caibx"), in.image(name))
			}
			return []string{"repo", "gc", filepath.Join(dir, "default.castr"), "--keep-last", "1", "--grace", "0s", "--yes"}
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			store, old := filepath.Join(dir, "default.castr"), filepath.Join(dir, "a.caibx")
			if got := run(t, "cairn", "repo", "check", store); got.status != 0 {
				return fmt.Errorf("repo check: %s%s", got.stdout, got.stderr)
			}
			if _, err := os.Stat(old); done && err == nil {
				return errors.New("the old index is still there")
			}
			if done {
				if err := in.wantChunks(t, store, "b"); err != nil {
					return err
				}
			}
			return errors.Join(in.wantStored(t, old, store), in.wantPublished(t, filepath.Join(dir, "b.caibx"), store, "b", true))
		},
	}
}

// wantChunks checks that a store has the chunks of a release, and no others.
func (in *callInput) wantChunks(t testing.TB, store, name string) error {
	var stat struct {
		Unreferenced struct {
			Chunks int64 `json:"chunks"`
		} `json:"unreferenced"`
	}
	if err := json.Unmarshal([]byte(must(t, "cairn", "store", "stat", "--json", store, in.index(name))), &stat); err != nil {
		return err
	}
	if n := stat.Unreferenced.Chunks; n > 0 {
		return fmt.Errorf("%d chunks of no index are still there", n)
	}
	return nil
}

func (in *callInput) catJob() callJob {
	return callJob{name: "cat",
		prepare: func(t testing.TB, dir string) []string { return []string{"cat", in.index("b")} },
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error {
			image, err := os.ReadFile(in.image("b"))
			if err != nil {
				return err
			}
			if done && r.Stdout != string(image) || !strings.HasPrefix(string(image), r.Stdout) {
				return errors.New("wrong bytes on stdout")
			}
			return nil
		},
	}
}

// serveJob serves release b with an image cache to a client that reads all of it.
func (in *callInput) serveJob(name, from, prefetch string) callJob {
	return callJob{name: name,
		prepare: func(t testing.TB, dir string) []string {
			return []string{"serve", from + "/b.caibx", "--cache", filepath.Join(dir, "cache"),
				"--listen", "unix:" + filepath.Join(dir, "nbd"), "--prefetch", prefetch}
		},
		use: func(p *callfault.Process, dir string) error {
			image, err := os.ReadFile(in.image("b"))
			if err != nil {
				return err
			}
			return readServed(p, filepath.Join(dir, "nbd"), image)
		},
		judge: func(t testing.TB, dir string, done bool, r callfault.Result) error { return nil },
	}
}

// readServed reads the whole image from a server twice. A failed read must succeed when it is repeated. A server that
// has not accepted a client may end.
func readServed(p *callfault.Process, socket string, image []byte) error {
	r := servedReader{socket: socket}
	defer r.disconnect()
	faults := 0
	for at, end := 0, time.Now().Add(hangs/2); at < 2*len(image); {
		from := at % len(image)
		part := image[from:min(from+96*kib, len(image))]
		got, err := r.read(len(part), uint64(from))
		switch {
		case err == nil && !bytes.Equal(got, part):
			return fmt.Errorf("wrong bytes at %d", from)
		case err == nil:
			at += len(part)
			continue
		case time.Now().After(end) || faults > 20:
			return fmt.Errorf("the server does not recover: %w", err)
		}
		if r.connected { // it may still be starting
			faults++
		}
		select {
		case <-p.Done():
			if r.connected {
				return errors.New("the server ended under its client")
			}
			return nil
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// servedReader is a client that connects again after the loss of its connection.
type servedReader struct {
	socket    string
	client    *nbdtest.Client
	connected bool // once
}

func (r *servedReader) read(n int, from uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), hangs/2)
	defer cancel()
	if r.client == nil {
		c, err := nbdtest.Dial(ctx, "unix", r.socket)
		if err != nil {
			return nil, err
		}
		if _, err := c.Go(""); err != nil {
			_ = c.Close()
			return nil, err
		}
		r.client, r.connected = c, true
	}
	p := make([]byte, n)
	err := r.client.Read(ctx, p, from)
	if _, reply := errors.AsType[*nbdtest.Error](err); err != nil && !reply {
		r.disconnect()
	}
	return p, err
}

func (r *servedReader) disconnect() {
	if r.client != nil {
		_ = r.client.Close()
		r.client = nil
	}
}
