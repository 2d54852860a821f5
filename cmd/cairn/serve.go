package main

import (
	"cmp"
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

	"cairn/blob"
	"cairn/blob/trust"
	"cairn/internal/atomicfile"
	"cairn/internal/daemon"
	"cairn/internal/dashboard"
	"cairn/internal/hugepages"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/nbd"
	"cairn/nbd/export"
	"cairn/seed/known"
	"cairn/seed/learn"
	"cairn/store/locate"
)

type serveFlags struct {
	stores
	listening
	serverTLS
	imageFlags
	seedFlags
	trustFlags
	indexes  []locate.Location
	accept   func(*blob.Index) error // nil accepts every index
	watchDir string
	metrics  []daemon.Address // one or none
	maxConns int
	inFlight int64
	pidfile  string
	withExit bool
	user     string
	manager  *daemon.Notifier
	verbose  bool
}

func newServe() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve INDEX...",
		Short: "Serve images over NBD, downloading chunks when they are read",
		Long: `serve exports the image of each INDEX (a path or URL) over NBD, read-only. It downloads a chunk when a client
first reads it, verifies it, and keeps it in memory and in --cache. It prefetches the chunks of a boot profile. When
the stores are unreachable, reads block up to --stall-timeout. A chunk that cannot be fetched fails only the reads
that need it, and the next read tries again. A chunk that a --seed has is read there, and not downloaded. A seed
without an INDEX is scanned while the server works already. If there is a delta beside a remote store from an image that
the seeds hold, the other chunks are made from it (--no-delta: they are not).

An export has the name of its index file without .caibx, and the name NAME@DIGEST with the digest of the index, which
never names another image. The first export also has the empty name. --watch exports each index file of a directory,
as long as it is there. serve prints the URIs of the exports when clients can connect. If an image does not fill its
last sector of 512 bytes, the export has zeros behind it, and the export's description has the size of the image.

Without --listen, serve uses the sockets that systemd or a client passes to it, or else a unix socket in a new
directory. With --tls-cert, clients must use TLS. SIGTERM, SIGINT, SIGHUP or SIGQUIT ends the server with status 0,
after reads under way ended or some seconds passed. Under nohup, SIGHUP is ignored.`,
		Example: `  cairn serve v2.caibx --listen unix:/run/v2.sock
  cairn serve --watch /srv/images --listen tcp:0.0.0.0:10809 --tls-cert server.pem --tls-key server.key
  cairn serve https://images.example.com/v2.caibx --seed @root --cache /var/cache/cairn --listen unix:/run/v2.sock
  nbdinfo -- [ cairn serve https://images.example.com/v2.caibx ]
  qemu-system-x86_64 -drive file=nbd+unix:///v2?socket=/run/v2.sock,format=raw,if=virtio,readonly=on …`,
		Args: checkArgs(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runServe(c.Context(), c.OutOrStdout(), f) },
	}
	f.stores.addFlags(c)
	f.confinement.addFlags(c)
	indexArgs(c, &f.indexes, 0)
	f.listening.addFlags(c)
	f.serverTLS.addFlags(c)
	f.seedFlags.addFlags(c)
	c.Flags().StringVar(&f.pidfile, "pidfile", "", "`file` that contains the process id from the time when clients can connect to the end")
	c.Flags().StringVar(&f.user, "user", "", "`NAME[:GROUP]` whose rights the server takes instead of root's when its sockets are open")
	c.Flags().BoolVar(&f.withExit, "exit-with-parent", false, "stop when the parent process has ended")
	c.Flags().Var(funcFlag{"address", "", func(text string) error {
		f.metrics = nil
		if text == "" {
			return nil
		}
		return addressFlag(&f.metrics).set(text)
	}}, "metrics",
		"`address` of Prometheus metrics and a status page: tcp:HOST:PORT or unix:PATH; without authentication (default: none)")
	f.imageFlags.addFlags(c)
	c.Flags().StringVar(&f.watchDir, "watch", "", "`directory` whose index files are exported, also those that appear later")
	c.Flags().IntVar(&f.maxConns, "max-connections", 128, "maximum `number` of connections at the same time; a TCP peer may have half of them")
	c.Flags().Var(limitFlag(&f.inFlight), "max-in-flight", "maximum `bytes` of replies in flight, of all clients together (default: as --memory, at least 32 MiB)")
	addCheck(c, func(args []string) error {
		switch {
		case len(args) == 0 && f.watchDir == "":
			return errors.New("want an INDEX, or --watch DIRECTORY")
		case f.maxConns < 1:
			return fmt.Errorf("--max-connections %d: want at least 1", f.maxConns)
		}
		if f.inFlight = cmp.Or(f.inFlight, max(f.memory, minInFlight)); f.inFlight < minInFlight || f.inFlight > 1<<40 {
			return fmt.Errorf("--max-in-flight %s: want 32 MiB to 1 TiB", plaintext.Size(f.inFlight))
		}
		return f.checkImages(f.cache, f.watchDir, len(args))
	})
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		for _, index := range args {
			u.addReader("INDEX "+index, index)
		}
		f.seedFlags.addReaders(u)
		u.addWriter("--record", f.record)
		u.addPrinter("the URIs (--print-uri=false leaves them out)", f.printURIs)
	})
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log every connection")
	f.trustFlags.addTo(c)
	return c
}

// acceptTrusted finds the index of the release, which is the only one that the server accepts then. Where keys are
// trusted, an index without release is refused.
func (f *serveFlags) acceptTrusted(ctx context.Context) error {
	if f.release.IsZero() {
		keys, err := f.load()
		if err == nil && !keys.IsEmpty() && !f.allowUnsigned {
			err = hintError{fmt.Errorf("serving images: %w", errUnsigned), hintUnsigned}
		}
		if err == nil && !keys.IsEmpty() {
			logf("warning: --allow-unsigned: nobody vouches for the images")
		}
		return err
	}
	if len(f.indexes) > 1 || f.watchDir != "" {
		return usageError{errors.New("--release serves one image: leave INDEX and --watch out")}
	}
	x, err := f.openIndex(ctx, &f.indexes[0], f.access, readIndex)
	if err != nil {
		return err
	}
	wanted := x.Digest()
	f.accept = func(x *blob.Index) error {
		if d := x.Digest(); d != wanted {
			return trust.Refuse("it has the digest %v, and the release lists %v", d, wanted)
		}
		return nil
	}
	return nil
}

// minInFlight is the least value of --max-in-flight, the largest request.
const minInFlight = 32 << 20

// garbagePercent is the argument of debug.SetGCPercent. Chunks live long and contain no pointers. Therefore collecting
// garbage four times as often as usual costs a tenth of the CPU time while clients read an image larger than --memory,
// and nothing otherwise.
const garbagePercent = 25

func runServe(ctx context.Context, stdout io.Writer, f serveFlags) error {
	if err := f.checkSupport(); err != nil {
		return err
	}
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
	if err := f.acceptTrusted(ctx); err != nil {
		return err
	}
	opened := f.learnOptions().Open(f.seeds)
	defer learn.Close(opened)
	shares, err := f.limitFiles(len(opened))
	if err != nil {
		return err
	}
	setMemoryLimit := f.memoryLimit()
	setMemoryLimit(0)
	server := &nbd.Server{Log: f.newLogger(), MaxConns: f.maxConns, MaxBytes: int(f.inFlight)}
	if server.TLS, err = f.tlsConfig(f.files, server.Log); err != nil {
		return err
	}
	if err := f.checkFiles(); err != nil {
		return err
	}
	status, err := daemon.Listen(ctx, 0o600, f.metrics...)
	if err != nil {
		return ignoreIfEnded(ctx, fmt.Errorf("--metrics: %w", err))
	}
	listeners, cleanUp, err := f.openListeners(ctx)
	if err != nil {
		daemon.CloseAll(status)
		return ignoreIfEnded(ctx, err)
	}
	defer cleanUp()
	defer daemon.CloseAll(append(status, listeners...)) // clients that connect before the images are open wait
	f.manager = daemon.OpenNotifier()
	endConfinement, err := f.confine(listeners, status, server.Log)
	if err != nil {
		return err
	}
	defer endConfinement()
	options := f.exportOptions(server.Log, shares.requests, shares.images, setMemoryLimit)
	options.Seeds, options.Learn, options.NoDelta = opened, f.learnOptions(), f.noDelta
	catalogue, err := export.Open(ctx, options)
	if err != nil {
		return ignoreIfEnded(ctx, hintExport(err))
	}
	defer catalogue.Close()
	server.Exports = catalogue
	end, err := daemon.BeginReady(ctx, f.manager, f.pidfile, func(state string, err error) {
		logf("warning: telling the service manager %s: %v", state, err)
	})
	if err != nil {
		return err
	}
	defer end()
	logMetricsAddresses(status)
	warnOfExposure(listeners, f.usesTLS())
	if f.printURIs {
		printURIs(openfile.Optional(stdout), listeners, catalogue.Names(), f.usesTLS())
	}
	return serveAll(ctx, server, catalogue, listeners, metricsSide{status, shares.status})
}

// learnOptions returns the options for the content of seeds. A single worker scans them, since clients are served at the
// same time.
func (f *serveFlags) learnOptions() learn.Options {
	return learn.Options{Releases: f.releaseAccess(), State: known.Dir(f.state), Workers: 1, Notes: f.logSeedNote}
}

// memoryLimit returns a function that limits the memory of the process to what the flags allow, its connections, the
// indexes of the open images and the seeds, and memory of its own. Buffers of replies are reused or garbage, and no new garbage is made
// while a server is idle. So without a limit, those of one burst would stay, and those of several bursts add up. Near the
// limit the garbage collector runs more often.
func (f *serveFlags) memoryLimit() (set func(indexes int64)) {
	const program, connection = 16 << 20, 1 << 20
	given := debug.SetMemoryLimit(-1) // GOMEMLIMIT
	limit := f.memory + f.inFlight + int64(f.maxConns)*connection + program
	return func(indexes int64) { debug.SetMemoryLimit(min(limit+indexes, given)) }
}

// metricsSide has the listeners of metrics, and the largest number of connections to them.
type metricsSide struct {
	listeners []net.Listener
	conns     int
}

// serveAll serves NBD on listeners, and metrics, until ctx ends or an NBD listener fails.
func serveAll(
	ctx context.Context, server *nbd.Server, catalogue *export.Catalogue, listeners []net.Listener, metrics metricsSide,
) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(groupCtx, l) })
	}
	if len(metrics.listeners) > 0 {
		monitor := export.NewMonitor(server, catalogue, versionText())
		group.Go(func() error {
			if err := dashboard.New(monitor.Status, monitor.Totals).Serve(groupCtx, metrics.conns, metrics.listeners...); err != nil {
				logf("warning: metrics are no longer served: %v", err)
			}
			return nil
		})
	}
	group.Go(func() error { catalogue.Run(groupCtx); return nil })
	return group.Wait()
}

// ignoreIfEnded returns nil instead of err if a signal ended the server before it was ready.
func ignoreIfEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// checkFiles reports, before the server starts, why a file of the flags could not be used later.
func (f *serveFlags) checkFiles() error {
	if f.pidfile != "" {
		if err := atomicfile.Check(f.pidfile); err != nil {
			return err
		}
	}
	if path, local := f.profile.Local(); local {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("reading profile: %w", err)
		}
	}
	return checkOutput(f.record)
}

func (f *serveFlags) newLogger() *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: f.cleanAttr}))
}

// cleanAttr returns an attribute of a log line, which may contain any text, as a text for display.
func (f *serveFlags) cleanAttr(_ []string, a slog.Attr) slog.Attr {
	if err, is := a.Value.Any().(error); is {
		a.Value = slog.StringValue(f.explainDenied(err))
	}
	_, isLevel := a.Value.Any().(slog.Level)
	if kind := a.Value.Kind(); kind == slog.KindString || kind == slog.KindAny && !isLevel {
		a.Value = slog.StringValue(plaintext.Line(a.Value.String()))
	}
	return a
}
