package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"cairn/internal/daemon"
	"cairn/nbd/export"
)

// extendTime is how long systemd is asked to wait for a start; an attempt to read an index and a pause take less.
const extendTime = 2 * time.Minute

// sayOfExport words a note of the exports. That a start waits is for the service manager.
func sayOfExport(n export.Note, log *slog.Logger) {
	switch n := n.(type) {
	case export.MemoryNote:
		what := "images are"
		if !n.Index.IsZero() {
			what = n.Index.String() + " is"
		}
		say("warning: %s kept in memory only: %v", what, n.Err)
	case export.KindNote:
		noteKind(n.Index, n.Kind)
	case export.ProfileNote:
		until := ""
		if n.Later {
			until = " until it can be read"
		}
		say("warning: going on without a profile%s: %v", until, n.Err)
	case export.WaitNote:
		state := fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=waiting for the index %s", extendTime.Microseconds(), n.Index)
		if n.Over {
			state = "STATUS="
		}
		if err := daemon.Notify(state); err != nil {
			log.Warn("telling the service manager", "error", err)
		}
	}
}

// hintExport adds a hint to the error about an export whose index or stores are not there.
func hintExport(err error) error {
	e, is := errors.AsType[*export.Error](err)
	switch {
	case !is:
		return err
	case e.Part == export.Stores:
		return absentHint(err, "name the store with -s LOCATION")
	}
	return hintIndex(err)
}

// warnOfMetrics says where metrics are, and warns of listeners that others can reach.
func warnOfMetrics(listeners []net.Listener) {
	for _, l := range listeners {
		if l.Addr().Network() == "unix" {
			continue
		}
		say("metrics and status: http://%v/", l.Addr())
		if daemon.ReachesOthers(l.Addr()) {
			say("warning: %v has no authentication: whoever reaches it sees names of images, clients and stores", l.Addr())
		}
	}
}

// warnOfExposure warns of listeners that more clients can reach than their owner may know.
func warnOfExposure(listeners []net.Listener, secure bool) {
	for _, l := range listeners {
		switch at := l.Addr(); {
		case daemon.ReachesOthers(at) && !secure:
			say("warning: %v takes clients of other machines, without TLS: whoever reaches it can read the images (--tls-cert)", at)
		case at.Network() == "unix" && !daemon.HasPath(at):
			say("warning: the socket %v has no permissions: every user of this machine can read the images", at)
		}
	}
}

func printURIs(w io.Writer, listeners []net.Listener, names []string, secure bool) {
	for _, l := range listeners {
		for _, name := range names {
			if uri := exportURI(l.Addr(), name, secure); uri != "" {
				fmt.Fprintln(w, uri)
			}
		}
	}
}

// exportURI returns the export's address as NBD clients take it (NetworkBlockDevice/nbd, doc/uri.md), or "" if no URI
// can say it.
func exportURI(at net.Addr, name string, secure bool) string {
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	if at.Network() != "unix" {
		host := url.URL{Host: at.String()}
		return scheme + ":" + host.String() + "/" + escapeURI(name)
	}
	if !daemon.HasPath(at) {
		return ""
	}
	path, err := filepath.Abs(at.String())
	if err != nil {
		path = at.String()
	}
	return scheme + "+unix:///" + escapeURI(name) + "?socket=" + escapeURI(path)
}

// escapeURI escapes all that means something in any part of a URI, except the slash. Clients differ in what they take
// for a separator, and do not take + for a space.
func escapeURI(text string) string {
	return strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(text))
}
