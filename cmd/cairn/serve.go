package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/internal/daemon"
	"cairn/internal/dashboard"
	"cairn/internal/hugepages"
	"cairn/internal/openfile"
	"cairn/nbd"
	"cairn/nbd/export"
	"cairn/store/locate"
)

type serveFlags struct {
	stores
	listening
	security
	imageFlags
	indexes  []locate.Location
	watchDir string
	metrics  string
	status   daemon.Address // of metrics
	maxConns int
	inFlight int64
	pidfile  string
	withExit bool
	verbose  bool
}

func newServe() *cobra.Command {
	f := serveFlags{imageFlags: defaultImageFlags(), inFlight: 512 << 20}
	c := &cobra.Command{
		Use:   "serve INDEX...",
		Short: "Export images over NBD, fetching chunks when they are read",
		Long: `serve exports the image of each INDEX (a path or URL) read-only over NBD. A chunk is fetched when it is first
read, once however many ask, checked, and kept in memory for a while, and in --cache for good. What a boot profile
names is fetched before it is read. A read waits for a store that is away; a chunk that cannot be fetched fails
only the reads that need it, and is asked for anew by the next one.

An export is named as its index file without .caibx, and also NAME@DIGEST with the digest of the index, which
never stands for another image; the first export answers to the empty name too. With --watch each index file of a
directory is an export as long as it is there, without a restart. The URIs are printed when clients can connect. An
image that does not fill its last sector of 512 bytes has some zeros behind it; its description has its own size.

Sockets that systemd or a client hands over are used instead of the default one. With --tls-cert, clients must speak
TLS. SIGTERM, SIGINT, SIGHUP or SIGQUIT lets the reads under way end, for some seconds at most, and exits with
status 0. Under nohup SIGHUP is ignored.`,
		Example: `  cairn serve v2.caibx --listen unix:/run/v2.sock
  cairn serve --watch /srv/images --listen tcp:0.0.0.0:10809 --tls-cert server.pem --tls-key server.key
  nbdinfo -- [ cairn serve https://images.example.com/v2.caibx ]
  qemu-system-x86_64 -drive file=nbd+unix:///v2?socket=/run/v2.sock,format=raw,if=virtio,readonly=on …`,
		Args: arguments(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runServe(c.Context(), c.OutOrStdout(), f) },
	}
	f.stores.add(c)
	indexArgs(c, &f.indexes, 0, 0)
	f.listening.add(c)
	f.security.add(c)
	c.Flags().StringVar(&f.pidfile, "pidfile", "", "`file` to write the process id to when clients can connect; removed at the end")
	c.Flags().BoolVar(&f.withExit, "exit-with-parent", false, "stop when the process that started this one has ended")
	c.Flags().StringVar(&f.metrics, "metrics", "",
		"`address` for Prometheus metrics and a status page: tcp:HOST:PORT or unix:PATH; without authentication (default: none)")
	f.imageFlags.add(c)
	c.Flags().StringVar(&f.watchDir, "watch", "", "`directory` whose index files are exports, as they come and go")
	c.Flags().IntVar(&f.maxConns, "max-connections", 128, "serve at most that many `clients` at a time")
	c.Flags().Var(amount(&f.inFlight), "max-in-flight", "hold at most that many `bytes` of replies on their way, of all clients together")
	check(c, func(args []string) error {
		switch {
		case len(args) == 0 && f.watchDir == "":
			return errors.New("want an INDEX, or --watch DIRECTORY")
		case f.maxConns < 1:
			return fmt.Errorf("--max-connections %d: want at least 1", f.maxConns)
		case f.inFlight < 64<<20 || f.inFlight > 1<<40:
			return fmt.Errorf("--max-in-flight %s: want 64 MiB to 1 TiB", size(f.inFlight))
		}
		if f.metrics != "" {
			var err error
			if f.status, err = parseAddress("--metrics", f.metrics); err != nil {
				return err
			}
		}
		return f.imageFlags.check(f.cache, f.watchDir, len(args))
	})
	checkStdio(c, func(u *users, args []string) {
		for _, index := range args {
			u.reads("INDEX "+index, index)
		}
		u.writes("--record", f.record)
		u.prints("the URIs (--print-uri=false leaves them out)", f.printURIs)
	})
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log every connection")
	return c
}

// garbagePercent is how much memory besides what is in use may wait to be collected. Chunks live long and hold
// no pointers: collecting four times as often as usual costs a tenth of the CPU time while an image that does not
// fit into --memory is read, and nothing otherwise.
const garbagePercent = 25

func runServe(ctx context.Context, stdout io.Writer, f serveFlags) error {
	hugepages.Heap(f.memory + f.memory*garbagePercent/100)
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent))
	if f.withExit {
		var stop context.CancelFunc
		var err error
		if ctx, stop, err = daemon.WithParent(ctx); err != nil {
			return err
		}
		defer stop()
	}
	server := &nbd.Server{Log: f.log(), MaxConns: f.maxConns, MaxBytes: int(f.inFlight)}
	var err error
	if server.TLS, err = f.config(f.files, server.Log); err != nil {
		return err
	}
	if err := f.checkFiles(); err != nil {
		return err
	}
	status, err := f.listenForMetrics(ctx)
	if err != nil {
		return endedBefore(ctx, err)
	}
	listeners, cleanUp, err := f.listening.open(ctx)
	if err != nil {
		daemon.CloseAll(status)
		return endedBefore(ctx, err)
	}
	defer cleanUp()
	defer daemon.CloseAll(append(status, listeners...)) // clients that come before the images are open wait
	catalogue, err := export.Open(ctx, f.exports(server.Log))
	if err != nil {
		return endedBefore(ctx, hintExport(err))
	}
	defer catalogue.Close()
	server.Exports = catalogue
	end, err := daemon.BeginReady(ctx, f.pidfile, func(state string, err error) {
		say("warning: telling the service manager %s: %v", state, err)
	})
	if err != nil {
		return err
	}
	defer end()
	warnOfMetrics(status)
	warnOfExposure(listeners, f.on())
	if f.printURIs {
		printURIs(openfile.Optional(stdout), listeners, catalogue.Names(), f.on())
	}
	return serveAll(ctx, server, catalogue, listeners, status)
}

// serveAll serves clients, and metrics to those of status, until ctx ends or a listener fails.
func serveAll(
	ctx context.Context, server *nbd.Server, catalogue *export.Catalogue, listeners, status []net.Listener,
) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(groupCtx, l) })
	}
	if len(status) > 0 {
		monitor := export.NewMonitor(server, catalogue, versionText())
		group.Go(func() error {
			if err := dashboard.New(monitor.Status, monitor.Totals).Serve(groupCtx, status...); err != nil {
				say("warning: metrics are not served any more: %v", err)
			}
			return nil
		})
	}
	group.Go(func() error { catalogue.Run(groupCtx); return nil })
	return group.Wait()
}

// endedBefore returns nil instead of err if the server was to end before it was ready.
func endedBefore(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// checkFiles checks early the files that are needed later.
func (f *serveFlags) checkFiles() error {
	if err := errors.Join(checkFile(f.pidfile), checkOutput(f.record)); err != nil {
		return err
	}
	if path, local := f.profile.at.Local(); local && f.profile.word == "" {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("reading profile: %w", err)
		}
	}
	return nil
}

// listenForMetrics listens on the address of --metrics, if there is one.
func (f *serveFlags) listenForMetrics(ctx context.Context) ([]net.Listener, error) {
	if f.metrics == "" {
		return nil, nil
	}
	listeners, err := daemon.Listen(ctx, 0o600, f.status)
	if err != nil {
		return nil, fmt.Errorf("--metrics: %w", err)
	}
	return listeners, nil
}

func (f *serveFlags) log() *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
