package cachedir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/supply"
)

// Settings of the processes of TestKilledProcesses.
const (
	sharerEnv    = "CAIRN_TEST_SHARE" // the cache directory of a child process
	sharers      = 3                  // the first of them is killed repeatedly
	workers      = 4                  // of each
	sharedLimit  = 4 << 20
	sharedChunks = 600
	largest      = 40 * kib
	enough       = 1000            // gets of one process after which the cache is at least half full
	slowest      = 2 * time.Minute // for the cache to be seen half full
)

func TestMain(m *testing.M) {
	if path := os.Getenv(sharerEnv); path != "" {
		os.Exit(share(path))
	}
	os.Exit(m.Run())
}

// shared are chunks that take three times the limit.
func shared() (samples []sample) {
	for i := range uint64(sharedChunks) {
		samples = append(samples, newSample(i, 1+int(i*7919%largest)))
	}
	return samples
}

// share gets chunks through the cache until it is terminated, and reports its result.
func share(path string) (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d := Open(path, Options{Limit: sharedLimit})
	s, err := newSharer(d)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { s.work(ctx) })
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		s.complain(err)
	}
	fmt.Printf("gets %d, misses %d, bad %d\n", s.gets.Load(), s.misses.Load(), s.bad.Load())
	return int(min(s.bad.Load(), 1))
}

// sharer is one of several processes. It is also the origin of its chunks.
type sharer struct {
	samples           []sample
	byDigest          map[blob.Digest]sample
	cache             store.Getter
	gets, misses, bad atomic.Int64
}

func newSharer(d *Dir) (*sharer, error) {
	s := &sharer{samples: shared(), byDigest: map[blob.Digest]sample{}}
	for _, sample := range s.samples {
		s.byDigest[sample.digest] = sample
	}
	keep, err := store.NewWriter(d, store.WriterOptions{})
	s.cache = supply.Cached(s, store.NewChunks(d, blob.SHA512_256), keep, s.complain)
	return s, err
}

func (s *sharer) complain(err error) {
	s.bad.Add(1)
	fmt.Println(err)
}

// Get implements store.Getter.
func (s *sharer) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(s.get).Get(ctx, wants, done)
}

func (s *sharer) get(_ context.Context, d blob.Digest, dst []byte) error {
	s.misses.Add(1)
	copy(dst, s.byDigest[d].data)
	return nil
}

// work requests some chunks far more often than others.
func (s *sharer) work(ctx context.Context) {
	for ctx.Err() == nil {
		want := s.samples[rand.IntN(1+rand.IntN(sharedChunks))]
		dst := make([]byte, len(want.data))
		err := store.GetOne(ctx, s.cache, want.digest, dst)
		if ctx.Err() != nil {
			return
		}
		s.gets.Add(1)
		if err != nil || !bytes.Equal(dst, want.data) {
			s.complain(fmt.Errorf("chunk %v: %w, the right bytes: %v", want.digest, err, bytes.Equal(dst, want.data)))
		}
	}
}

// process is a sharer seen from the test. Only its methods wait for it, since os/exec does not
// report stops.
type process struct {
	pid int
	log *os.File
}

func startSharer(t *testing.T, path string) *process {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), sharerEnv+"="+path)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &process{pid: cmd.Process.Pid, log: log}
}

// signal sends a signal, and waits until the process has stopped or ended by it.
func (p *process) signal(t *testing.T, s syscall.Signal) syscall.WaitStatus {
	t.Helper()
	var status syscall.WaitStatus
	err := syscall.Kill(p.pid, s)
	for err == nil {
		_, err = syscall.Wait4(p.pid, &status, syscall.WUNTRACED, nil)
		if err == nil {
			return status
		}
		if errors.Is(err, syscall.EINTR) {
			err = nil
		}
	}
	t.Fatalf("signal %v: %v", s, err)
	return status
}

func (p *process) said(t *testing.T) string {
	t.Helper()
	out, err := os.ReadFile(p.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	p.log.Close()
	return string(out)
}

// TestKilledProcesses: processes share a cache that is far too small, and one of them is killed
// repeatedly. Whenever all are stopped, the cache is within its limit. Chunks are damaged
// meanwhile, and no process ever gets a wrong byte.
//
// The test ends when the cache was seen half full, or after slowest; on a busy machine it takes
// longer. CAIRN_LONG=1 runs it for five minutes.
func TestKilledProcesses(t *testing.T) {
	duration := 10 * time.Second
	switch {
	case os.Getenv("CAIRN_LONG") == "1":
		duration = 5 * time.Minute
	case testing.Short():
		duration = 2 * time.Second
	}
	runtime.LockOSThread() // children die with the thread that started them
	defer runtime.UnlockOSThread()
	path := filepath.Join(t.TempDir(), "cache")
	var processes []*process
	for range sharers {
		processes = append(processes, startSharer(t, path))
	}
	var most int64
	kills, samples := 0, 0
	start := time.Now()
	for time.Since(start) < duration || most < sharedLimit/2 && time.Since(start) < slowest {
		time.Sleep(time.Duration(20+rand.IntN(130)) * time.Millisecond) // at a random moment
		for _, p := range processes {
			if status := p.signal(t, syscall.SIGSTOP); !status.Stopped() {
				t.Fatalf("a process ended: %v\n%s", status, p.said(t))
			}
		}
		most = max(most, du(t, path))
		samples++
		damage(t, path)
		for _, p := range processes {
			if err := syscall.Kill(p.pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
		if rand.IntN(3) == 0 {
			processes[0].signal(t, syscall.SIGKILL)
			processes[0] = startSharer(t, path)
			kills++
		}
	}
	processes[0].signal(t, syscall.SIGKILL)
	busiest := 0
	for _, p := range processes[1:] {
		busiest = max(busiest, p.end(t))
	}
	most = max(most, du(t, path))
	t.Logf("%d kills; in %d samples the cache had at most %d of %d bytes", kills, samples, most, sharedLimit)
	// One extra chunk allows for a damaged one that is replaced while it is evicted.
	if allowed := int64(sharedLimit + largest); most > allowed {
		t.Errorf("the cache had %d bytes, want at most %d", most, allowed)
	}
	if busiest >= enough && most < sharedLimit/2 {
		t.Errorf("the cache had %d bytes after %d gets, want at least %d", most, busiest, sharedLimit/2)
	}
	last := open(t, path, sharedLimit)
	last.recount(t)
	if got, want := tallyOf(t, path).used, du(t, path); got != want {
		t.Errorf("in the end %d bytes are counted, and there are %d", got, want)
	}
}

// end terminates a process, checks its own report, and returns how many chunks it got.
func (p *process) end(t *testing.T) (gets int) {
	t.Helper()
	status := p.signal(t, syscall.SIGTERM)
	words := p.said(t)
	if status.Signaled() && status.Signal() == syscall.SIGTERM && words == "" {
		return 0 // it had no time to begin
	}
	var misses, bad int
	_, err := fmt.Sscanf(words, "gets %d, misses %d, bad %d\n", &gets, &misses, &bad)
	if err != nil || bad > 0 || status.ExitStatus() != 0 {
		t.Fatalf("a process ended with status %d: %s", status.ExitStatus(), words)
	}
	if gets >= enough && misses > gets*3/4 {
		t.Errorf("of %d gets %d missed: the cache was of little use", gets, misses)
	}
	t.Log(strings.TrimSpace(words))
	return gets
}

// damage changes one bit of a chunk in place, while no process runs.
func damage(t *testing.T, path string) {
	t.Helper()
	chunks, err := filepath.Glob(filepath.Join(path, "????", "*.cacnk"))
	if err != nil || len(chunks) == 0 {
		return
	}
	chunk := chunks[rand.IntN(len(chunks))]
	data, err := os.ReadFile(chunk)
	if err != nil || len(data) == 0 {
		t.Fatalf("damaging a chunk of %d bytes: %v", len(data), err)
	}
	data[len(data)/2] ^= 4
	err = errors.Join(os.Chmod(chunk, 0o644), os.WriteFile(chunk, data, 0o444))
	if err != nil {
		t.Fatal(err)
	}
}

// TestMillionChunks: the cost of an eviction in a large cache.
func TestMillionChunks(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("CAIRN_LONG=1 makes a million files")
	}
	path := filepath.Join(t.TempDir(), "cache")
	if err := os.MkdirAll(filepath.Join(path, controlName), 0o755); err != nil {
		t.Fatal(err)
	}
	const n = 1_000_000
	start := time.Now()
	for i := range n {
		makeSparse(t, path, i)
	}
	t.Logf("made %d files in %v", n, time.Since(start))
	d := Open(path, Options{Limit: Unlimited})
	defer d.Close()
	peak := watchMemory(t, func() { d.settle() }) // it counts
	used := tallyOf(t, path).used
	t.Logf("counted %d bytes in %v, heap %d KiB", used, time.Since(start), peak/kib)

	start = time.Now()
	small := Open(path, Options{Limit: used})
	defer small.Close()
	reads := make(chan time.Duration)
	go func() { reads <- slowestRead(small) }()
	peak = watchMemory(t, small.settle)
	after := tallyOf(t, path).used
	t.Logf("evicted %d of %d bytes in %v, heap %d KiB; the slowest of 10000 reads meanwhile took %v",
		used-after, used, time.Since(start), peak/kib, <-reads)
	if after > lowWater(used)+used/1000 || // some chunks are read meanwhile
		after < lowWater(used)-1<<20 {
		t.Errorf("%d of %d bytes are left", after, used)
	}
	if peak > 16<<20 {
		t.Errorf("an eviction took %d bytes of memory", peak)
	}
}

// millionth returns the name of one of a million chunks.
func millionth(i int) string {
	hex := blob.SHA512_256.Sum([]byte(fmt.Sprint(i))).String()
	return hex[:4] + "/" + hex + ".cacnk"
}

// makeSparse makes a chunk of the usual size and a given age, which takes no space on the disk.
func makeSparse(t *testing.T, path string, i int) {
	file := filepath.Join(path, millionth(i))
	f, err := os.Create(file)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Create(withDir(t, file))
	}
	if err != nil {
		t.Fatal(err)
	}
	at := unix.NsecToTimeval(time.Now().Add(-time.Duration(rand.Int64N(int64(30 * 24 * time.Hour)))).UnixNano())
	err = errors.Join(f.Truncate(30*kib), unix.Futimes(int(f.Fd()), []unix.Timeval{at, at}), f.Close())
	if err != nil {
		t.Fatal(err)
	}
}

// withDir makes the directory of a file, and returns the file's name.
func withDir(t *testing.T, file string) string {
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// watchMemory returns the greatest increase of the heap in use while do runs.
func watchMemory(t *testing.T, do func()) (peak int64) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := int64(m.HeapInuse)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return peak
		case <-tick.C:
			runtime.ReadMemStats(&m)
			peak = max(peak, int64(m.HeapInuse)-before)
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// slowestRead reads chunks, of which some are evicted meanwhile, and returns the longest duration
// of a read.
func slowestRead(d *Dir) (slowest time.Duration) {
	var buf []byte
	for i := range 10_000 {
		start := time.Now()
		buf, _ = d.Read(context.Background(), millionth(i), buf[:0], 1<<20)
		slowest = max(slowest, time.Since(start))
	}
	return slowest
}
