// Command bench measures cairn beside casync, desync, qemu-nbd and nbdkit: the CPU time, wall time and memory of each
// job, as the kernel counts them for the whole process. It runs the tools as a user would, and knows nothing of their
// inner workings, except for the format of deltas. It is a tool for developers and not a part of cairn;
// docs/benchmarks.md describes the method.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"cairn/internal/simd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.cairn, "cairn", "cairn", "the `binary` to measure")
	flag.StringVar(&o.libzstd, "libzstd", "", "the `binary` that links libzstd (default: not measured)")
	flag.StringVar(&o.images, "images", "", "`directory` with a.FORMAT and b.FORMAT")
	flag.StringVar(&o.work, "work", "/dev/shm", "`directory` to work in")
	flag.StringVar(&o.disk, "disk", "", "`directory` on a disk, for a store (default: nothing on a disk is measured)")
	flag.StringVar(&o.out, "out", "", "write results to this `path` with .md, .json and -FORMAT-….svg added")
	flag.BoolVar(&o.serve, "serve", false, "measure servers of a warm image instead")
	flag.BoolVar(&o.delta, "delta", false, "measure deltas instead: what an update from a to b downloads")
	flag.BoolVar(&o.net, "net", false, "measure over links instead: how fast release b comes from a web server")
	flag.BoolVar(&o.update, "update", false, "measure updates over a link instead: release b with a as a seed, with and without a delta")
	flag.StringVar(&o.link, "link", "", "only links whose name has this `text` in it, such as 100 Mbit")
	flag.Int64Var(&o.bytes, "bytes", 0, "of each image, use that many `bytes` over links (default: all)")
	flag.IntVar(&o.rounds, "rounds", 5, "how many `times` to run everything")
	flag.Parse()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	cairn, libzstd, images, work, disk, out string
	rounds                                  int
	net, serve, delta, update               bool
	link                                    string
	bytes                                   int64
}

// run measures with the images of each format, and writes the results.
func run(ctx context.Context, o options, formats []string) error {
	if len(formats) == 0 || o.rounds < 1 || o.images == "" || o.out == "" {
		return errors.New("usage: bench [-net | -serve | -delta | -update] -images DIR [-cairn BINARY] [-libzstd BINARY] [-work DIR] [-disk DIR] [-rounds N] [-link TEXT] [-bytes N] " +
			"-out PATH FORMAT [FORMAT]")
	}
	for _, path := range []*string{&o.cairn, &o.libzstd, &o.disk, &o.work} { // the tools run in directories of their own
		if err := makeAbsolute(path); err != nil {
			return err
		}
	}
	if o.net || o.update {
		return runNet(ctx, o, formats)
	}
	tools := [][]string{{o.cairn, "version"}, words("casync --version"), words("qemu-nbd --version"),
		words("nbdkit --version"), words("nbdcopy --version"), words("fio --version")}
	if o.delta {
		tools = [][]string{{o.cairn, "version"}, words("zstd --version"), words("xdelta3 -V")}
	}
	machine, err := describeMachine(ctx, tools...)
	if err != nil {
		return err
	}
	r := results{Machine: machine, Rounds: o.rounds, goals: goals(simd.Allowed())}
	if o.serve {
		r.goals = serveGoals()
	}
	if o.delta {
		r.goals = nil
	}
	for _, format := range formats {
		if err := r.measure(ctx, o, format); err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
	}
	return r.writeFiles(o.out)
}

func makeAbsolute(path *string) (err error) {
	if *path != "" {
		*path, err = filepath.Abs(*path)
	}
	return err
}

// measure runs all rounds with the images of one format.
func (r *results) measure(ctx context.Context, o options, format string) (err error) {
	work, err := os.MkdirTemp(o.work, "cairn-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if o.disk != "" {
		if o.disk, err = os.MkdirTemp(o.disk, "cairn-bench-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.disk)) }()
	}
	size, err := copyImages(ctx, o.images, work, format)
	if err != nil {
		return err
	}
	suite := suite{cairn: o.cairn, libzstd: o.libzstd, disk: o.disk, socket: filepath.Join(work, "nbd")}
	for round := range o.rounds {
		begun := time.Now()
		jobs := suite.jobs()
		switch {
		case o.serve:
			jobs = suite.serveJobs()
		case o.delta:
			jobs = suite.deltaJobs()
		}
		samples, err := measureRound(ctx, work, jobs, size)
		if err != nil {
			return err
		}
		for i := range samples {
			samples[i].Image = format
		}
		r.Samples = append(r.Samples, samples...)
		took := time.Since(begun).Round(time.Second)
		fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d took %v\n", format, round+1, o.rounds, took)
	}
	return nil
}

// copyImages copies the images of a format to the work directory, and returns the size of a. The copies are a,
// b, and b without holes for servers of files: finding holes in a tmpfs is slow, and qemu-nbd looks for them
// before every read.
func copyImages(ctx context.Context, from, work, format string) (int64, error) {
	for _, c := range []struct{ name, sparse, as string }{
		{"a", "always", "a"}, {"b", "always", "b"}, {"b", "never", "dense"},
	} {
		image, as := filepath.Join(from, c.name+"."+format), filepath.Join(work, c.as)
		if err := runQuietly(exec.CommandContext(ctx, "cp", "--sparse="+c.sparse, image, as)); err != nil {
			return 0, err
		}
	}
	info, err := os.Stat(filepath.Join(work, "a"))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
