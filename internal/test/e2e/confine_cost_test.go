package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// cost is what a run of cairn takes.
type cost struct{ wall, cpu time.Duration }

// TestConfinementCost prints what the confinement costs: pairs of runs with --confine off and require, one after the
// other, and the medians of their ratios. It judges nothing, since a busy machine disturbs it.
func TestConfinementCost(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("it measures minutes of work: CAIRN_LONG=1")
	}
	confined(t)
	const pairs, size = 9, 256 * mib
	dir := t.TempDir()
	image, index := writeFile(t, dir, "image", testimages.Random(1, size)), filepath.Join(dir, "b.caibx")
	cairn(t, "make", index, image)
	web, out := newNginx(t, dir), filepath.Join(dir, "out")
	assemble := func(args ...string) func(string) cost {
		return func(mode string) cost {
			c := exec.Command(need.Tool(t, "cairn"), append([]string{"assemble", "--confine", mode, "--state", ""}, args...)...)
			begun := time.Now()
			if text, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			took := cost{time.Since(begun), c.ProcessState.UserTime() + c.ProcessState.SystemTime()}
			must(t, "rm", out)
			return took
		}
	}
	for _, job := range []struct {
		name string
		run  func(mode string) cost
	}{
		{"assemble from a directory", assemble(index, out)},
		{"assemble from a web server", assemble(web.url+"/b.caibx", out)},
		{"serve, read by nbdcopy", func(mode string) cost { return serveOnce(t, mode, index) }},
	} {
		var wall, cpu []float64
		var off, require []cost
		for n := range pairs + 1 { // the first pair warms the caches
			a, b := job.run(confineModes[n%2]), job.run(confineModes[1-n%2])
			if n%2 == 1 {
				a, b = b, a
			}
			if n == 0 {
				continue
			}
			off, require = append(off, a), append(require, b)
			wall, cpu = append(wall, float64(b.wall)/float64(a.wall)), append(cpu, float64(b.cpu)/float64(a.cpu))
		}
		t.Logf("%s: %d pairs, off %s, require %s; ratio of wall %.3f, of CPU %.3f", job.name, pairs, medianCost(off),
			medianCost(require), median(wall), median(cpu))
	}
}

// confineModes are the compared values of --confine.
var confineModes = [2]string{"off", "require"}

// serveOnce has nbdcopy read all of an image from a new server.
func serveOnce(t *testing.T, mode, index string) cost {
	socket := filepath.Join(socketDir(t), "s")
	j := start(t, nil, "serve", "--confine", mode, index, "--listen", "unix:"+socket)
	j.stdout.await(t, "\n")
	begun := time.Now()
	must(t, "nbdcopy", "nbd+unix:///b?socket="+socket, "null:")
	took := cost{wall: time.Since(begun)}
	j.signal(t, syscall.SIGTERM)
	j.wait(t)
	took.cpu = j.cmd.ProcessState.UserTime() + j.cmd.ProcessState.SystemTime()
	return took
}

func medianCost(all []cost) string {
	var wall, cpu []float64
	for _, c := range all {
		wall, cpu = append(wall, c.wall.Seconds()), append(cpu, c.cpu.Seconds())
	}
	return fmt.Sprintf("%.3f s wall %.3f s CPU", median(wall), median(cpu))
}
