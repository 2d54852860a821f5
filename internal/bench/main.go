// Command bench measures cairn beside casync, desync, qemu-nbd and nbdkit: what each job costs in CPU time, wall
// time and memory, as the kernel counts it for the whole process. It runs the tools as a user would and knows
// nothing of how any of them works. It is a tool for developers and no part of cairn; docs/benchmarks.md has
// the method.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var o options
	flag.StringVar(&o.cairn, "cairn", "cairn", "the `binary` to measure")
	flag.StringVar(&o.images, "images", "", "`directory` with a.FORMAT and b.FORMAT")
	flag.StringVar(&o.work, "work", "/dev/shm", "`directory` to work in")
	flag.StringVar(&o.out, "out", "", "write results to this `path` with .md and .json added")
	flag.IntVar(&o.rounds, "rounds", 5, "how many `times` to run everything")
	flag.Parse()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	cairn, images, work, out string
	rounds                   int
}

// run measures with the images of each format, and writes the results.
func run(ctx context.Context, o options, formats []string) error {
	if len(formats) == 0 || o.rounds < 1 || o.out == "" {
		return errors.New("usage: bench -images DIR [-cairn BINARY] [-work DIR] [-rounds N] -out PATH FORMAT [FORMAT]")
	}
	var err error
	if o.cairn, err = filepath.Abs(o.cairn); err != nil { // the tools run in directories of their own
		return err
	}
	machine, err := describeMachine(ctx, o.cairn)
	if err != nil {
		return err
	}
	r := results{Machine: machine, Rounds: o.rounds}
	for _, format := range formats {
		if err := r.measure(ctx, o, format); err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(o.out+".json", append(text, '\n'), 0o644),
		os.WriteFile(o.out+".md", []byte(r.markdown()), 0o644))
}

// measure runs all rounds with the images of one format.
func (r *results) measure(ctx context.Context, o options, format string) (err error) {
	work, err := os.MkdirTemp(o.work, "cairn-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	for _, name := range []string{"a", "b"} {
		from := filepath.Join(o.images, name+"."+format)
		if err := quietly(exec.CommandContext(ctx, "cp", "--sparse=always", from, filepath.Join(work, name))); err != nil {
			return err
		}
	}
	jobs := jobs(o.cairn, filepath.Join(work, "nbd"))
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d\n", format, round+1, o.rounds)
		samples, err := measureRound(ctx, work, jobs)
		if err != nil {
			return err
		}
		for i := range samples {
			samples[i].Image = format
		}
		r.Samples = append(r.Samples, samples...)
	}
	return nil
}
