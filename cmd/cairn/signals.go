package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return fmt.Sprintf("interrupted (%v)", i.signal) }

// withSignals returns a context that ends with the first SIGINT, SIGTERM, SIGQUIT or SIGHUP, a function that ends it
// as a signal does, and a function that stops catching signals.
//
// A second signal kills, except SIGHUP: a lost ssh session sends it twice, by the shell and by the kernel, and systemd
// (SendSIGHUP=) directly after SIGTERM. SIGHUP that is ignored at the start, as under nohup, stays ignored.
//
// SIGPIPE is caught because a program that leaves it alone dies when it writes to a stdout or stderr without a reader.
// Caught, the write fails with EPIPE. It is not ignored: child processes would inherit that.
func withSignals(ctx context.Context) (_ context.Context, interrupt func(syscall.Signal), stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	interrupt = func(s syscall.Signal) { cancel(interrupted{s}) }
	once, again := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(once, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	hangup := make(chan os.Signal, 1)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(hangup, syscall.SIGHUP)
	}
	signal.Notify(again, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() {
		var s os.Signal
		select {
		case s = <-once:
		case s = <-hangup:
		case <-done:
			return
		}
		signal.Stop(once)
		interrupt(s.(syscall.Signal))
	}()
	return ctx, interrupt, func() {
		for _, c := range []chan os.Signal{once, hangup, again} {
			signal.Stop(c)
		}
		close(done)
		cancel(nil)
	}
}
