package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

// numExports is the number of small exports beside the large one.
const numExports = 40

// TestHostileClients: strangers do to serve all that NBD clients can do. It keeps its limits of memory and descriptors,
// and other clients get right bytes in time. With CAIRN_LONG=1 their slowest reads take at most twice as long as
// without strangers. Otherwise, on a machine that other tests use too, that is only logged.
func TestHostileClients(t *testing.T) {
	eachBuild(t, tryHostileClients)
}

func tryHostileClients(t *testing.T, v victim, noise time.Duration) {
	dir, image := publishMany(t)
	socket := filepath.Join(socketDir(t), "s")
	s := v.start(t, "serve", filepath.Join(dir, "v.caibx"), "--watch", dir, "-s", filepath.Join(dir, "v.castr"),
		"--cache", t.TempDir(), smallMemory, "--listen", "tcp:127.0.0.1:0", "--listen", "tcp:[::1]:0", "--listen", "unix:"+socket)
	s.stdout.await(t, "nbd+unix:")
	process, addresses := s.cmd.Process.Pid, addressesOf(t, s.stdout.String())

	for _, name := range exportNames() { // warms up: as many images are open as the server keeps
		c := namedClient(t, socket, name)
		if err := c.Read(t.Context(), make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	quiet := useOf(t, process)
	t.Logf("after the warm-up: %v", quiet)
	clients := dialPolite(t, image, addresses)
	rounds := 1
	if noise > time.Minute {
		rounds = 5
	}
	var alone, among []time.Duration
	most := use{nowKiB: littleKiB, files: quiet.files}
	if v.race {
		most.nowKiB *= 16
	}
	for n := range rounds {
		stop := clients.startReading(t)
		time.Sleep(noise / time.Duration(10*rounds))
		alone = append(alone, stop()...)
		stop = clients.startReading(t)
		tools := startTools(t, socket, image)
		attack(t, addresses, noise/time.Duration(rounds))
		among = append(among, stop()...)
		tools.Wait()
		u := useOf(t, process)
		v.checkUse(t, u.peakKiB)
		t.Logf("after the noise: %v", u)
		if n == 0 && rounds > 1 {
			most.nowKiB = u.nowKiB + 16<<10
		}
	}
	before, during := percentile99(alone), percentile99(among)
	t.Logf("%d and %d reads; of 100 the slowest but one took %v alone, %v among strangers: %.2f times",
		len(alone), len(among), before, during, float64(during)/float64(before))
	if os.Getenv("CAIRN_LONG") == "1" && !v.race && during > 2*before {
		t.Errorf("reads take more than twice as long among strangers")
	}
	for _, c := range clients {
		c.client.Close()
	}
	t.Logf("in the end: %v", awaitUse(t, process, most))
	s.signal(t, syscall.SIGTERM)
	got := s.wait(t)
	if got.status != 0 {
		t.Errorf("cairn serve: exit status %d", got.status)
	}
	t.Logf("cairn serve wrote %d lines", strings.Count(got.stderr, "\n"))
	checkLog(t, got.stderr)
}

// publishMany publishes v.caibx, and the indexes of many small images.
func publishMany(t *testing.T) (dir string, image []byte) {
	t.Helper()
	dir, image = t.TempDir(), testimages.Random(11, 48*mib)
	store := filepath.Join(dir, "v.castr")
	cairn(t, "make", "-s", store, filepath.Join(dir, "v.caibx"), writeFile(t, t.TempDir(), "v", image), "--compression-level", "1")
	for n := range numExports {
		small := writeFile(t, t.TempDir(), "small", image[n*mib/2:][:200_000])
		cairn(t, "make", "-s", store, filepath.Join(dir, fmt.Sprintf("e%d.caibx", n)), small, "--compression-level", "1")
	}
	return dir, image
}

// addressesOf returns the addresses in URIs that cairn printed, as the hostile client takes them.
func addressesOf(t *testing.T, uris string) (addresses []string) {
	t.Helper()
	for _, uri := range strings.Fields(uris) {
		at, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		address := "tcp:" + at.Host
		if at.Scheme == "nbd+unix" {
			address = "unix:" + at.Query().Get("socket")
		}
		if !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// exportNames returns the names of all exports, the large one first.
func exportNames() []string {
	names := []string{"v"}
	for n := range numExports {
		names = append(names, fmt.Sprintf("e%d", n))
	}
	return names
}

// startTools reads the image with the tools of others, each until it gets a connection that is not closed in favour of
// another one.
func startTools(t *testing.T, socket string, image []byte) *sync.WaitGroup {
	t.Helper()
	uri := "nbd+unix:///v?socket=" + socket
	file := writeFile(t, t.TempDir(), "image", image)
	out := filepath.Join(t.TempDir(), "out")
	var group sync.WaitGroup
	for _, tool := range [][]string{
		{"nbdcopy", "--connections=1", uri, out}, {"nbdinfo", "--size", uri}, {"qemu-img", "compare", "-f", "raw", "-F", "raw", uri, file},
	} {
		need.Tool(t, tool[0])
		group.Go(func() {
			for late := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
				got := run(t, tool[0], tool[1:]...)
				switch {
				case got.status == 0:
					if tool[0] == "nbdcopy" {
						wantSame(t, out, file)
					}
					return
				case tool[0] == "qemu-img" && got.status == 1 && strings.Contains(got.stdout, "mismatch"):
					t.Errorf("qemu-img compare: %s", got.stdout)
					return
				case time.Now().After(late):
					t.Errorf("%q: %+v", tool, got)
					return
				}
			}
		})
	}
	return &group
}

// attack runs the hostile client for a time.
func attack(t *testing.T, addresses []string, d time.Duration) {
	t.Helper()
	args := []string{"-time", d.String(), "-exports", strings.Join(exportNames(), ",")}
	j := startHostile(t, "nbd", append(args, addresses...)...)
	got := j.wait(t)
	t.Logf("%s%s", got.stderr, got.stdout)
	if got.status != 0 {
		t.Error("the hostile client failed")
	}
}

// politeClients are clients that read an image and check it.
type politeClients []*politeClient

type politeClient struct {
	client *nbdtest.Client
	image  []byte
}

// dialPolite connects a client to each address, over IPv4 from a host of its own.
func dialPolite(t *testing.T, image []byte, addresses []string) (all politeClients) {
	t.Helper()
	for _, address := range addresses {
		network, address, _ := strings.Cut(address, ":")
		var d net.Dialer
		if strings.HasPrefix(address, "127.") {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 100)}
		}
		conn, err := d.DialContext(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		c, err := nbdtest.New(conn)
		if err == nil {
			_, err = c.Go("v")
		}
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		all = append(all, &politeClient{c, image})
	}
	return all
}

// startReading lets all clients read. The returned function ends that, and returns the time of each read.
func (all politeClients) startReading(t *testing.T) (stop func() []time.Duration) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	times := make([][]time.Duration, len(all))
	for n, c := range all {
		group.Go(func() { times[n] = c.read(ctx, t) })
	}
	return func() []time.Duration {
		cancel()
		group.Wait()
		return slices.Concat(times...)
	}
}

// read reads ranges of 4 to 64 KiB until ctx ends, some hundred in a second.
func (c *politeClient) read(ctx context.Context, t *testing.T) (times []time.Duration) {
	for ctx.Err() == nil {
		p := make([]byte, 4096<<rand.IntN(5))
		off := rand.IntN(len(c.image) - len(p))
		start := time.Now()
		err := c.client.Read(context.WithoutCancel(ctx), p, uint64(off))
		times = append(times, time.Since(start))
		switch {
		case err != nil:
			t.Errorf("a client's read failed: %v", err)
			return times
		case !bytes.Equal(p, c.image[off:off+len(p)]):
			t.Errorf("a client got %d wrong bytes at %d", len(p), off)
			return times
		}
		time.Sleep(3 * time.Millisecond)
	}
	return times
}

// percentile99 returns the time that 99 of 100 reads do not exceed.
func percentile99(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)*99/100]
}
