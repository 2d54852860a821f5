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
// as a signal does, and a function that stops the catching of signals and ends it without a cause.
//
// A second signal kills the process, except SIGHUP. A lost ssh session sends SIGHUP twice, by the shell and by the
// kernel, and systemd (SendSIGHUP=) sends it directly after SIGTERM. SIGHUP stays ignored if it was ignored at the
// start, as under nohup.
//
// SIGPIPE is caught, because by default it kills a program that writes to a stdout or stderr without a reader. When it
// is caught, the write fails with EPIPE. It is not ignored, because child processes would inherit that.
func withSignals(ctx context.Context) (_ context.Context, interrupt func(syscall.Signal), stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	interrupt = func(s syscall.Signal) { cancel(interrupted{s}) }
	first, hangup, pipe := make(chan os.Signal, 1), make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(first, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(hangup, syscall.SIGHUP)
	}
	signal.Notify(pipe, syscall.SIGPIPE)
	done := make(chan struct{})
	go func() {
		var s os.Signal
		select {
		case s = <-first:
		case s = <-hangup:
		case <-done:
			return
		}
		signal.Stop(first)
		interrupt(s.(syscall.Signal))
	}()
	return ctx, interrupt, func() {
		for _, c := range []chan os.Signal{first, hangup, pipe} {
			signal.Stop(c)
		}
		close(done)
		cancel(nil)
	}
}
