package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store/storetest"
	"cairn/testimages"
)

// repository is an empty place for indexes and a store.
type repository struct {
	at string // location of the directory
	// exists reports whether an index is there.
	exists func(name string) bool
}

func (r repository) store() string            { return r.at + "/default.castr" }
func (r repository) index(name string) string { return r.at + "/" + name }
func (r repository) isRemote() bool           { return strings.Contains(r.at, "://") }

// repositories returns a repository in a directory, one in S3 (versitygw) and one on an sshd.
func repositories(t *testing.T) map[string]repository {
	t.Helper()
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	t.Setenv("AWS_ENDPOINT_URL", "http://"+server.Host)
	sshd := storetest.NewSSHD(t, "internal-sftp")
	ssh := writeFile(t, t.TempDir(), "ssh", []byte("#!/bin/sh\nexec ssh -F "+sshd.Config+" \"$@\"\n"))
	if err := os.Chmod(ssh, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CAIRN_SSH", ssh)
	inDir := func(dir string) func(string) bool {
		return func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil
		}
	}
	dir, onServer := t.TempDir(), t.TempDir()
	return map[string]repository{
		"directory": {dir, inDir(dir)},
		"SFTP":      {"sftp://store" + onServer, inDir(onServer)},
		"S3": {"s3://images/repo", func(name string) bool {
			return run(t, "cairn", "info", "s3://images/repo/"+name).status == 0
		}},
	}
}

// history returns n images, each with half of the chunks of the one before.
func history(t *testing.T, n int) (images []string) {
	t.Helper()
	const part = 300_000
	dir := t.TempDir()
	for i := range n {
		data := slices.Concat(testimages.Random(99, part), testimages.Random(uint64(i), part), testimages.Random(uint64(i+1), part))
		images = append(images, writeFile(t, dir, fmt.Sprintf("%d.img", i), data))
	}
	return images
}

// TestRepository publishes releases, removes half of them, and collects: the store has the chunks that a fresh publish
// of the others has.
func TestRepository(t *testing.T) {
	type stat struct {
		Chunks int64 `json:"chunks"`
		Bytes  int64 `json:"stored_bytes"`
	}
	count := func(store string) (s stat) {
		parse(t, cairn(t, "store", "stat", "--json", store), &s)
		return s
	}
	name := func(i int) string { return fmt.Sprintf("v%d.caibx", i) }
	for kind, r := range repositories(t) {
		t.Run(kind, func(t *testing.T) {
			half := 5
			if kind == "SFTP" { // each connection takes long
				half = 2
			}
			images := history(t, 2*half)
			fresh := t.TempDir()
			for i, image := range images {
				cairn(t, "make", r.index(name(i)), image)
				if i >= half {
					cairn(t, "make", filepath.Join(fresh, name(i)), image)
				}
			}
			cairn(t, "repo", "remove", r.store(), name(0))
			var dry, wet struct {
				Indexes []string `json:"removed_indexes"`
				Removed stat     `json:"removed"`
			}
			args := []string{"repo", "gc", r.store(), "--keep-last", fmt.Sprint(half), "--grace", "0s", "--yes", "--json"}
			parse(t, cairn(t, append(args, "--dry-run")...), &dry)
			parse(t, cairn(t, args...), &wet)
			var old []string
			for i := 1; i < half; i++ {
				old = append(old, name(i))
			}
			if !slices.Equal(wet.Indexes, old) || !slices.Equal(dry.Indexes, old) || dry.Removed != wet.Removed {
				t.Errorf("gc removed %+v, and a dry run before said %+v", wet, dry)
			}
			if got, want := count(r.store()), count(filepath.Join(fresh, "default.castr")); got != want {
				t.Errorf("the store has %+v, a fresh one %+v", got, want)
			}
			for i, image := range images {
				if i < half {
					if r.exists(name(i)) {
						t.Errorf("%s was not removed", name(i))
					}
					continue
				}
				out := filepath.Join(t.TempDir(), name(i))
				cairn(t, "assemble", r.index(name(i)), out)
				wantSame(t, out, image)
			}
			cairn(t, "repo", "check", r.store())
		})
	}
}

// TestCollectOnS3: gc lists the chunks and removes a thousand in one request; it sends no request for each chunk.
func TestCollectOnS3(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	proxy, counts := storetest.CountingProxy(t, "http://"+server.Host)
	t.Setenv("AWS_ENDPOINT_URL", proxy)
	const store = "s3://images/default.castr"
	chunks := func() int64 {
		var stat struct {
			Chunks int64 `json:"chunks"`
		}
		parse(t, cairn(t, "store", "stat", "--json", store), &stat)
		return stat.Chunks
	}
	dir := t.TempDir()
	for i, name := range []string{"a", "b"} {
		image := writeFile(t, dir, name, testimages.Random(uint64(i), 4<<20))
		cairn(t, "make", "s3://images/"+name+".caibx", image, "--chunk-size", "512B:1KiB:4KiB")
	}
	all := chunks()
	cairn(t, "repo", "remove", store, "a.caibx")
	before := counts()
	cairn(t, "repo", "gc", store, "--grace", "0s", "--yes")
	spent := counts().Sub(before)
	left := chunks()
	gone := all - left
	t.Logf("%d of %d chunks are removed: %+v", gone, all, spent)
	if gone < all/3 || spent.Deletes > gone/1000+12 || spent.Lists > 3*(all/1000)+150 || spent.Heads+spent.Gets+spent.Puts > 40 {
		t.Errorf("%d of %d chunks are removed with %+v", gone, all, spent)
	}
	cairn(t, "verify", "s3://images/b.caibx")
}

// TestRepositoryKills lets publishers and collectors work in one repository and kills them at any moment. Whatever is
// published is whole.
func TestRepositoryKills(t *testing.T) {
	span := 10 * time.Second
	if os.Getenv("CAIRN_LONG") != "" {
		span = 30 * time.Minute
	}
	images := history(t, 6)
	for kind, r := range repositories(t) {
		t.Run(kind, func(t *testing.T) {
			// All in parallel would share two CPUs, and each would publish little.
			end := time.Now().Add(span)
			var serial, made, vanished, collected, killed, verified atomic.Int64
			var workers sync.WaitGroup
			loop := func(seed uint64, step func(random *rand.Rand)) {
				random := rand.New(rand.NewPCG(seed, 0))
				workers.Go(func() {
					for time.Now().Before(end) && !t.Failed() {
						step(random)
					}
				})
			}
			// runKilled runs cairn, and kills it with a probability of one in n.
			runKilled := func(random *rand.Rand, n int, args ...string) ran {
				j := start(t, nil, args...)
				if n > 0 && random.IntN(n) == 0 {
					time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
					_ = j.cmd.Process.Kill()
				}
				result := j.wait(t)
				if result.status == -1 {
					killed.Add(1)
				}
				return result
			}
			for seed := range uint64(2) {
				loop(seed, func(random *rand.Rand) {
					name := fmt.Sprintf("p%d.caibx", serial.Add(1))
					args := []string{"make", r.index(name), images[random.IntN(len(images))]}
					if seed == 1 {
						args = append(args, "--layout", "packs", "--pack-size", "256KiB")
					}
					switch result := runKilled(random, 3, args...); result.status {
					case 0:
						made.Add(1)
					case -1:
					case 4:
						if seed != 1 || !strings.Contains(result.stderr, "the store has lost chunks meanwhile: pack ") {
							t.Errorf("make: %d\n%s", result.status, result.stderr)
						} // without a grace, a repack takes the packs of a publisher
						vanished.Add(1)
					default:
						t.Errorf("make: %d\n%s", result.status, result.stderr)
					}
				})
			}
			loop(10, func(random *rand.Rand) {
				oneIn := 3
				if r.isRemote() { // after a kill, publishers wait two minutes for the end of its turn
					oneIn = 0
					if os.Getenv("CAIRN_LONG") != "" {
						oneIn = 20
					}
				}
				args := []string{"repo", "gc", r.store(), "--keep-last", "4", "--grace", "0s", "--yes", "--wait", "1m"}
				if random.IntN(4) == 0 {
					args = append(args, "--repack")
				}
				switch result := runKilled(random, oneIn, args...); {
				case result.status == 0:
					collected.Add(1)
				case result.status == -1, strings.Contains(result.stderr, "gc does not manage the store"): // nothing was published yet
				case result.status == 5 && strings.Contains(result.stderr, "publishers are at work"):
				case result.status == 4: // the store does not exist yet
				default:
					t.Errorf("gc: %d\n%s", result.status, result.stderr)
				}
			})
			loop(20, func(random *rand.Rand) {
				last := serial.Load()
				if last == 0 {
					time.Sleep(10 * time.Millisecond)
					return
				}
				name := fmt.Sprintf("p%d.caibx", max(last-random.Int64N(6), 1))
				result := run(t, "cairn", "verify", "-s", r.store(), r.index(name))
				switch {
				case result.status == 0:
					verified.Add(1)
				case strings.Contains(result.stderr, "reading index"): // not yet published, or removed
				case r.exists(name): // or it was removed meanwhile, without a grace
					t.Errorf("%s is published, and not whole:\n%s%s", name, result.stdout, result.stderr)
				}
			})
			workers.Wait()
			runKilled(rand.New(rand.NewPCG(1, 1)), 1, "repo", "gc", r.store(), "--grace", "0s", "--yes")
			// A killed publisher leaves a gc root without an index, which is no defect.
			result := run(t, "cairn", "repo", "check", r.store())
			if result.status != 0 {
				t.Errorf("repo check: %d\n%s%s", result.status, result.stdout, result.stderr)
			}
			for i := range serial.Load() + 1 {
				if name := fmt.Sprintf("p%d.caibx", i); r.exists(name) {
					cairn(t, "verify", "-s", r.store(), r.index(name))
				}
			}
			t.Logf("published %d times, %d times in vain, collected %d, killed %d, verified %d",
				made.Load(), vanished.Load(), collected.Load(), killed.Load(), verified.Load())
			if made.Load() == 0 || collected.Load() == 0 {
				t.Error("nothing was published or collected")
			}
		})
	}
}
