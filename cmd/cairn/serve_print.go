package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"cairn/internal/daemon"
	"cairn/internal/loglimit"
	"cairn/internal/plaintext"
	"cairn/nbd"
	"cairn/nbd/export"
)

// extendTime extends systemd's limit for the start. An attempt to read an index and the pause after it take less.
const extendTime = 2 * time.Minute

// exportNotes prints the notes of the exports. Clients can cause any number of them, so their number is limited.
type exportNotes struct {
	log     *slog.Logger
	manager *daemon.Notifier
	limit   loglimit.Limiter
}

// printf is logf, within the limit.
func (e *exportNotes) printf(format string, args ...any) {
	e.limit.Write(format, func(suppressed int) {
		if suppressed > 0 {
			format += fmt.Sprintf(" (%d earlier ones were suppressed)", suppressed)
		}
		logf(format, args...)
	})
}

// printNote prints a note, or sends a note about a wait to the service manager.
func (e *exportNotes) printNote(n export.Note) {
	switch n := n.(type) {
	case export.MemoryNote:
		what := "images are"
		if !n.Index.IsZero() {
			what = n.Index.String() + " is"
		}
		e.printf("warning: %s kept in memory only: %v", what, n.Err)
	case export.KindNote:
		if note := kindNote(n.Index, n.Kind); note != "" {
			e.printf("note: %s", note)
		}
	case export.ProfileNote:
		until := ""
		if n.Later {
			until = " until it can be read"
		}
		e.printf("warning: going on without a profile%s: %v", until, n.Err)
	case export.WaitNote:
		state := fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=waiting for the index %s", extendTime.Microseconds(), plaintext.Line(n.Index.String()))
		if n.Over {
			state = "STATUS="
		}
		if err := e.manager.Notify(state); err != nil {
			e.log.Warn("telling the service manager", "error", err)
		}
	}
}

// hintExport adds a hint to the error about an export whose index or stores do not exist.
func hintExport(err error) error {
	e, is := errors.AsType[*export.Error](err)
	switch {
	case !is:
		return err
	case e.Part == export.Stores:
		return absentHint(err, "name the store with --store LOCATION")
	}
	return hintIndex(err)
}

// logMetricsAddresses prints the URLs of the metrics, and warns of listeners that other machines can reach.
func logMetricsAddresses(listeners []net.Listener) {
	for _, l := range listeners {
		if l.Addr().Network() == "unix" {
			continue
		}
		logf("metrics and status: http://%v/", l.Addr())
		if daemon.ReachesOthers(l.Addr()) {
			logf("warning: %v has no authentication: everyone who can connect sees the names of images, clients and stores", l.Addr())
		}
	}
}

// warnOfExposure warns of listeners that other machines or other users of this machine can reach.
func warnOfExposure(listeners []net.Listener, tls bool) {
	for _, l := range listeners {
		switch at := l.Addr(); {
		case daemon.ReachesOthers(at) && !tls:
			logf("warning: %v accepts clients from other machines, without TLS: they can all read the images (--tls-cert)", at)
		case at.Network() == "unix" && !daemon.HasPath(at):
			logf("warning: the socket %v has no permissions: every user of this machine can read the images", at)
		}
	}
}

func printURIs(w io.Writer, listeners []net.Listener, names []string, tls bool) {
	for _, l := range listeners {
		for _, name := range names {
			if uri := nbd.URI(l.Addr(), name, tls); uri != "" {
				fmt.Fprintln(w, uri)
			}
		}
	}
}
