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
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/internal/daemon"
	"cairn/internal/hugepages"
	"cairn/nbd"
	"cairn/store/locate"
)

type serveFlags struct {
	stores
	listening
	security
	seeing
	imageFlags
	indexes  []locate.Location
	watchDir string
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
	f.seeing.add(c)
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
	fetching, endFetches := context.WithCancel(context.WithoutCancel(ctx)) // reads under way may end after a signal
	defer endFetches()
	server := &nbd.Server{Log: f.log(), MaxConns: f.maxConns, MaxBytes: int(f.inFlight)}
	var err error
	if server.TLS, err = f.config(&f.opened.files, server.Log); err != nil {
		return err
	}
	if err := f.checkFiles(); err != nil {
		return err
	}
	status, err := f.seeing.listen(ctx)
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
	offer, err := f.offer(ctx, fetching)
	if err != nil {
		return endedBefore(ctx, err)
	}
	defer offer.close()
	server.Exports = offer
	end, err := daemon.BeginReady(ctx, f.pidfile, func(state string, err error) {
		say("warning: telling the service manager %s: %v", state, err)
	})
	if err != nil {
		return err
	}
	defer end()
	show := f.seeing.open(status, server, offer)
	warnOfExposure(listeners, f.on())
	if f.printURIs {
		printURIs(optional(stdout), listeners, offer.names, f.on())
	}
	return f.serve(ctx, server, offer, listeners, show)
}

// endedBefore is nil instead of err if the server was to end before it was ready.
func endedBefore(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// checkFiles looks early at the files that are needed later.
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

// serve serves until ctx ends, or a listener fails.
func (f *serveFlags) serve(ctx context.Context, server *nbd.Server, o *offer, listeners []net.Listener, show func(context.Context)) error {
	defer daemon.CloseAll(listeners)
	group, groupCtx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(groupCtx, l) })
	}
	group.Go(func() error { show(groupCtx); return nil })
	if o.watched != nil {
		group.Go(func() error { o.watched.run(groupCtx); return nil })
	}
	return group.Wait()
}

// offer is what is exported.
type offer struct {
	nbd.Exports
	names   []string // that clients are told of
	static  []*nbd.Export
	watched *watch // nil without --watch
	images  *images
	close   func() // when no client is there any more
}

func (f *serveFlags) offer(ctx, fetching context.Context) (o *offer, err error) {
	images := newImages(fetching, f.imageFlags, f.stores, f.log())
	defer func() {
		if err != nil {
			images.close()
		}
	}()
	var exports []*nbd.Export
	for _, index := range f.indexes {
		e, _, err := images.open(ctx, index) // it is open to the end
		if err != nil {
			return nil, err
		}
		exports = append(exports, e)
	}
	static, err := nbd.NewStatic(exports...)
	if err != nil {
		return nil, err
	}
	o = &offer{Exports: static, static: exports, images: images, close: images.close}
	for _, e := range exports {
		o.names = append(o.names, e.Name)
	}
	if f.watchDir == "" {
		return o, nil
	}
	if o.watched, err = newWatch(f.watchDir, images.open, f.log()); err != nil {
		return nil, err
	}
	o.Exports = chain{static, o.watched}
	o.names = append(o.names, "") // clients add theirs
	o.close = func() { o.watched.shut(); images.close() }
	return o, nil
}

func (f *serveFlags) log() *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func newExport(index locate.Location, x *blob.Index, v *view.Image) *nbd.Export {
	name, digest := exportName(index), x.Digest().String()
	return &nbd.Export{
		Name:        name,
		Canonical:   name + "@" + digest,
		Description: fmt.Sprintf("%s, an image of %d bytes, index digest %s", name, x.Size(), digest),
		Device:      exported{v},
		ReadOnly:    true,
		MultiConn:   true,
	}
}

// exportName is the index's file name without .caibx.
func exportName(index locate.Location) string {
	_, name, err := index.Split()
	if err != nil {
		return index.String()
	}
	return strings.TrimSuffix(name, release.IndexSuffix)
}
