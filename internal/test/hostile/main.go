// Command hostile is a hostile NBD client and a hostile web server, to try `cairn serve` and `cairn assemble` with. It
// does at random, from a seed, what a stranger may do. It checks nothing: that the victim keeps its limits and gives
// right bytes or clear errors is for the tests in internal/test/e2e, which run it beside honest clients and stores.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

const usage = `usage: hostile nbd [-seed N] [-workers N] [-time D] [-exports NAME,...] ADDRESS...
         attack NBD servers; an ADDRESS is unix:PATH or tcp:HOST:PORT
       hostile web [-seed N] [-honest SHARE] DIRECTORY
         serve a directory over HTTP and HTTPS; print both URLs and a file with the certificate;
         SIGUSR1 makes the server honest
       both end at SIGTERM, and then print as JSON what they did`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] != "nbd" && args[0] != "web" {
		return errors.New(usage)
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	seed := flags.Uint64("seed", rand.Uint64N(1e9), "seed of the random choices")
	workers := flags.Int("workers", 16, "attacks at the same time")
	limit := flags.Duration("time", 0, "end after this time; 0 means at a signal")
	exports := flags.String("exports", "", "names of exports to choose")
	honest := flags.Float64("honest", 0.7, "share of honest answers")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "hostile: seed", *seed)
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	counts := &tally{Kinds: map[string]int64{}}
	var err error
	switch {
	case args[0] == "nbd" && flags.NArg() > 0:
		a := &attacker{addresses: flags.Args(), exports: strings.Split(*exports, ","), seed: *seed, tally: counts}
		a.run(ctx, *workers)
	case args[0] == "web" && flags.NArg() == 1:
		s := &server{dir: flags.Arg(0), share: *honest, seed: *seed, tally: counts}
		err = s.run(ctx)
	default:
		return errors.New(usage)
	}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(counts))
}

// tally counts what was done.
type tally struct {
	mu          sync.Mutex       // guards the fields below
	Connections int64            `json:"connections"`
	Requests    int64            `json:"requests"` // NBD options and requests, or HTTP requests
	Bytes       int64            `json:"bytes"`    // received by the client, sent by the web server
	Kinds       map[string]int64 `json:"kinds"`
}

func (t *tally) addKind(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Kinds[kind]++
}

func (t *tally) add(connections, requests, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Connections += connections
	t.Requests += requests
	t.Bytes += bytes
}

// pause blocks for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
