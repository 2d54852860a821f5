package e2e

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

// TestHostileServers: web servers do to assemble and serve all that servers can do. Each job gives the image or a clear
// error, and ends by itself. Both keep their limits of memory and descriptors. An honest store beside a hostile one
// gives the image.
func TestHostileServers(t *testing.T) {
	eachBuild(t, tryHostileServers)
}

func tryHostileServers(t *testing.T, v victim, noise time.Duration) {
	dir, image := t.TempDir(), testimages.Random(12, 6*mib)
	index := filepath.Join(dir, "v.caibx")
	cairn(t, "make", index, writeFile(t, t.TempDir(), "v", image), "--compression-level", "1")
	large, largeIndex := testimages.Random(13, 64*mib), filepath.Join(dir, "large.caibx")
	cairn(t, "make", largeIndex, writeFile(t, t.TempDir(), "large", large), "--compression-level", "1")
	wild, mild := newHostileServer(t, dir, 0.6), newHostileServer(t, dir, 0.98)
	honest := newOrigin(t, dir).URL + "/default.castr"

	s := v.start(t, "serve", largeIndex, "-s", mild.http+"/default.castr|"+wild.https+"/default.castr", "--ca-cert", writeFile(t, t.TempDir(),
		"ca", slices.Concat(readFile(t, mild.certificate), readFile(t, wild.certificate))), "--cache", t.TempDir(), "--cache-limit=16MiB", smallMemory,
		"--stall-timeout", "5s", "--listen", "unix:"+filepath.Join(socketDir(t), "s"))
	socket := strings.TrimSpace(s.stdout.await(t, "\n"))
	_, socket, _ = strings.Cut(socket, "?socket=")
	process := s.cmd.Process.Pid

	j := &hostileJobs{victim: v, image: image, index: index, honest: honest, servers: []hostileServer{wild, mild}, cache: t.TempDir()}
	var group sync.WaitGroup
	var enough atomic.Bool
	for range 6 {
		group.Go(func() {
			for !enough.Load() && !t.Failed() {
				j.assembleOnce(t)
			}
		})
	}
	group.Go(func() {
		for !enough.Load() && !t.Failed() {
			j.readOnce(t, socket, large)
		}
	})
	for begun := time.Now(); !t.Failed() && time.Since(begun) < noise+patience && (time.Since(begun) < noise || !j.hasAllResults()); {
		time.Sleep(100 * time.Millisecond)
	}
	enough.Store(true)
	t.Logf("serve during the noise: %v", useOf(t, process))
	wild.becomeHonest(t)
	mild.becomeHonest(t)
	group.Wait()
	t.Logf("assemble: %d images, %d errors, %d MiB at the peak; serve: %d right reads, %d errors",
		j.images, j.errors, j.peakKiB>>10, j.reads, j.failedReads)
	if !j.hasAllResults() {
		t.Error("not all kinds of results occurred")
	}
	v.checkUse(t, j.peakKiB)

	c := client(t, socket)
	for off := 0; off < len(large); off += mib {
		for late := time.Now().Add(patience); !read(t, c, large, off, mib); {
			if time.Now().After(late) {
				t.Fatalf("the server does not give the bytes at %d after the noise", off)
			}
		}
	}
	c.Close()
	u := useOf(t, process)
	t.Logf("serve in the end: %v", u)
	v.checkUse(t, u.peakKiB)
	s.signal(t, syscall.SIGTERM)
	got := s.wait(t)
	if got.status != 0 {
		t.Errorf("cairn serve: exit status %d", got.status)
	}
	t.Logf("cairn serve wrote %d lines", strings.Count(got.stderr, "\n"))
	checkLog(t, got.stderr)
	endHostile(t, wild.job)
	endHostile(t, mild.job)
}

// hostileServer is a running hostile web server.
type hostileServer struct {
	*job
	http, https, certificate string
}

// newHostileServer starts a hostile web server for a directory, with a share of honest answers.
func newHostileServer(t *testing.T, dir string, share float64) hostileServer {
	t.Helper()
	s := hostileServer{job: startHostile(t, "web", "-honest", strconv.FormatFloat(share, 'f', -1, 64), dir)}
	words := strings.Fields(s.stdout.await(t, "\n"))
	s.http, s.https, s.certificate = words[0], words[1], words[2]
	return s
}

func (s hostileServer) becomeHonest(t *testing.T) {
	t.Helper()
	s.signal(t, syscall.SIGUSR1)
}

// hostileJobs are jobs that use hostile servers.
type hostileJobs struct {
	victim
	image         []byte
	index, honest string
	servers       []hostileServer
	cache         string // of chunks, shared by all jobs

	mu                      sync.Mutex // guards the fields below
	images, errors, peakKiB int
	reads, failedReads      int
}

// hasAllResults reports whether there were jobs with an image and with an error, and right reads.
func (j *hostileJobs) hasAllResults() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.images > 0 && j.errors > 0 && j.reads > 0
}

// assembleOnce assembles the image from a random choice of locations.
func (j *hostileJobs) assembleOnce(t *testing.T) {
	dir, err := os.MkdirTemp(scratch, "job")
	if err != nil {
		t.Error(err)
		return
	}
	defer os.RemoveAll(dir)
	out, took := filepath.Join(dir, "out"), filepath.Join(dir, "KiB")
	s := j.servers[rand.IntN(len(j.servers))]
	origin := s.http
	if rand.IntN(2) == 0 {
		origin = s.https
	}
	args := []string{"assemble", smallMemory, "--ca-cert", s.certificate, "--state", ""}
	withHonest := false
	switch rand.IntN(6) {
	default: // all from the hostile server
		args = append(args, origin+"/v.caibx", out)
	case 1:
		args, withHonest = append(args, j.index, out, "-s", origin+"/default.castr", "-s", j.honest), true
	case 2:
		args, withHonest = append(args, j.index, out, "-s", origin+"/default.castr|"+j.honest), true
	case 3:
		args = append(args, origin+"/v.caibx", out, "-s", j.honest)
	}
	if !withHonest { // a busy machine must not make an honest store look silent
		args = append(args, "--patience", "3s")
	}
	if rand.IntN(3) == 0 {
		args = append(args, "-c", j.cache)
	}
	if rand.IntN(3) == 0 {
		args = append(args, "--seed", writeFile(t, dir, "seed", j.image[:len(j.image)/2]))
	}
	got := j.run(t, took, args)
	j.check(t, got, out, took, withHonest, args)
}

// run runs cairn with few descriptors, and writes its peak memory to a file.
func (j *hostileJobs) run(t *testing.T, took string, args []string) ran {
	script := `ulimit -n ` + strconv.Itoa(fewFiles) + `; exec time --quiet --format=%M --output="$0" "$@"`
	return run(t, "sh", append([]string{"-c", script, took, j.program}, args...)...)
}

// check checks that a job gave the image or a clear error, within the limit of memory.
func (j *hostileJobs) check(t *testing.T, got ran, out, took string, withHonest bool, args []string) {
	checkLog(t, got.stderr)
	result, err := os.ReadFile(out)
	switch {
	case got.status == 0 && !bytes.Equal(result, j.image):
		t.Errorf("cairn %q succeeded, and the image is wrong: %v", args, err)
	case got.status != 0 && !errors.Is(err, os.ErrNotExist):
		t.Errorf("cairn %q failed, and wrote the image: %v", args, err)
	case got.status != 0 && (got.status < 0 || !strings.Contains(got.stderr, "cairn: error: ")):
		t.Errorf("cairn %q ended with %d and without a clear error:\n%s", args, got.status, got.stderr)
	case got.status != 0 && withHonest:
		t.Errorf("cairn %q failed, and an honest store had all chunks:\n%s", args, got.stderr)
	}
	kib, err := strconv.Atoi(strings.TrimSpace(string(readFile(t, took))))
	if err != nil {
		t.Error(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.peakKiB = max(j.peakKiB, kib)
	if got.status == 0 {
		j.images++
	} else {
		j.errors++
	}
}

// readOnce reads a range of the export over a new connection. A read gives right bytes or an error, and its connection
// stays open.
func (j *hostileJobs) readOnce(t *testing.T, socket string, image []byte) {
	c, err := nbdtest.Dial(t.Context(), "unix", socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	if _, err := c.Go(""); err != nil {
		t.Error(err)
		return
	}
	for range 20 {
		p := make([]byte, 1+rand.IntN(256<<10))
		off := rand.IntN(len(image) - len(p))
		err := c.Read(t.Context(), p, uint64(off))
		_, refused := errors.AsType[*nbdtest.Error](err)
		j.mu.Lock()
		switch {
		case err == nil && bytes.Equal(p, image[off:off+len(p)]):
			j.reads++
		case err == nil:
			t.Errorf("%d bytes at %d are wrong", len(p), off)
		case refused:
			j.failedReads++
		default:
			t.Errorf("a read at %d failed with its connection: %v", off, err)
		}
		j.mu.Unlock()
	}
}
