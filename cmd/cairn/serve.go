package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/view"
	"cairn/nbd"
)

type serveFlags struct {
	stores
	listening
	security
	life
	memory   int64
	watchDir string
	maxConns int
	inFlight int64
	verbose  bool
}

func newServe() *cobra.Command {
	f := serveFlags{memory: 256 << 20, inFlight: 512 << 20}
	f.patience = 10 * time.Minute
	c := &cobra.Command{
		Use:   "serve INDEX...",
		Short: "Export images over NBD, fetching chunks when they are read",
		Long: `serve exports the image of each INDEX (a path or URL) read-only over NBD. A chunk is fetched when it is first
read, once however many ask, checked, and kept in memory for a while. A chunk that cannot be fetched fails
only the reads that need it, and is asked for anew by the next one.

An export is named as its index file without .caibx, and also NAME@DIGEST with the digest of the index, which
never stands for another image; the first export answers to the empty name too. With --watch each index file of a
directory is an export as long as it is there, without a restart. The URIs are printed when clients can connect.

Sockets that systemd or a client hands over are used instead of the default one. With --tls-cert, clients must speak
TLS. SIGINT or SIGTERM lets the reads under way end, for some seconds at most, and exits with status 0.`,
		Example: `  cairn serve v2.caibx --listen unix:/run/v2.sock
  cairn serve --watch /srv/images --listen tcp:0.0.0.0:10809 --tls-cert server.pem --tls-key server.key
  nbdinfo -- [ cairn serve https://images.example.com/v2.caibx ]
  qemu-system-x86_64 -drive file=nbd+unix:///v2?socket=/run/v2.sock,format=raw,if=virtio,readonly=on …`,
		Args: arguments(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, args []string) error { return runServe(c.Context(), c.OutOrStdout(), f, args) },
	}
	f.stores.add(c)
	f.listening.add(c)
	f.security.add(c)
	f.life.add(c)
	c.Flags().StringVar(&f.watchDir, "watch", "", "`directory` whose index files are exports, as they come and go")
	c.Flags().Var(bytesFlag{&f.memory}, "memory", "keep at most that many `bytes` of chunks in memory, of all exports together")
	c.Flags().IntVar(&f.maxConns, "max-connections", 128, "serve at most that many `clients` at a time")
	c.Flags().Var(bytesFlag{&f.inFlight}, "max-in-flight", "hold at most that many `bytes` of replies on their way, of all clients together")
	check(c, func(args []string) error {
		switch {
		case len(args) == 0 && f.watchDir == "":
			return errors.New("want an INDEX, or --watch DIRECTORY")
		case f.maxConns < 1:
			return fmt.Errorf("--max-connections %d: want at least 1", f.maxConns)
		case f.inFlight < 64<<20 || f.inFlight > 1<<40:
			return fmt.Errorf("--max-in-flight %s: want 64 MiB to 1 TiB", size(f.inFlight))
		}
		return nil
	})
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log every connection")
	return c
}

// garbagePercent is how much memory besides what is in use may wait to be collected. Chunks live long and hold
// no pointers: collecting four times as often as usual costs a tenth of the CPU time while an image that does not
// fit into --memory is read, and nothing otherwise.
const garbagePercent = 25

func runServe(ctx context.Context, stdout io.Writer, f serveFlags, indexes []string) error {
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent))
	ctx, stop, err := f.follow(ctx)
	if err != nil {
		return err
	}
	defer stop()
	fetching, end := context.WithCancel(context.WithoutCancel(ctx)) // reads under way may end after a signal
	defer end()
	server := &nbd.Server{Log: f.log(), MaxConns: f.maxConns, MaxBytes: int(f.inFlight)}
	if server.TLS, err = f.config(server.Log); err != nil {
		return err
	}
	offer, err := f.offer(ctx, fetching, indexes)
	if err != nil {
		return err
	}
	defer offer.close()
	server.Exports = offer
	listeners, cleanUp, err := f.listening.open()
	if err != nil {
		return err
	}
	defer cleanUp()
	return f.serve(ctx, stdout, server, offer, listeners)
}

// serve serves until ctx ends, or a listener fails.
func (f *serveFlags) serve(ctx context.Context, stdout io.Writer, server *nbd.Server, o *offer, listeners []net.Listener) error {
	defer closeAll(listeners)
	if f.printURIs {
		for _, l := range listeners {
			for _, name := range o.names {
				fmt.Fprintln(stdout, exportURI(l.Addr(), name, f.on()))
			}
		}
	}
	over, err := f.begin(ctx)
	if err != nil {
		return err
	}
	defer over()
	group, groupCtx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(groupCtx, l) })
	}
	if o.watched != nil {
		group.Go(func() error { o.watched.run(groupCtx); return nil })
	}
	return group.Wait()
}

// offer is what is exported.
type offer struct {
	nbd.Exports
	names   []string // that clients are told of
	watched *watch   // nil without --watch
	close   func()   // when no client is there any more
}

func (f *serveFlags) offer(ctx, fetching context.Context, indexes []string) (*offer, error) {
	exports, closeExports, err := f.open(ctx, fetching, indexes)
	if err != nil {
		return nil, err
	}
	static, err := nbd.NewStatic(exports...)
	if err != nil {
		closeExports()
		return nil, err
	}
	o := &offer{Exports: static, close: closeExports}
	for _, e := range exports {
		o.names = append(o.names, e.Name)
	}
	if f.watchDir == "" {
		return o, nil
	}
	images := f.images(fetching)
	if o.watched, err = newWatch(f.watchDir, images.open, f.log()); err != nil {
		closeExports()
		return nil, err
	}
	o.Exports = chain{static, o.watched}
	o.names = append(o.names, "") // clients add theirs
	o.close = func() { o.watched.shut(); images.close(); closeExports() }
	return o, nil
}

// images are those of a watched directory. They share stores and memory: one cache for each kind of digest.
type images struct {
	flags    *serveFlags
	fetching context.Context
	caches   map[blob.Algorithm]*view.Cache
	closers  []func()
}

func (f *serveFlags) images(fetching context.Context) *images {
	return &images{flags: f, fetching: fetching, caches: make(map[blob.Algorithm]*view.Cache)}
}

// open implements opener.
func (i *images) open(ctx context.Context, path string) (*nbd.Export, func(), error) {
	x, err := readIndex(ctx, path, i.flags.access)
	if err != nil {
		return nil, nil, err
	}
	cache := i.caches[x.Algorithm()]
	if cache == nil {
		from, err := openStores(i.flags.stores, path, x.Algorithm(), 0)
		if err != nil {
			return nil, nil, err
		}
		cache = view.NewCache(i.fetching, from.chunks, view.Limits{Bytes: i.flags.memory, Fetches: from.fetches})
		i.caches[x.Algorithm()] = cache
		i.closers = append(i.closers, func() { cache.Close(); from.close() })
	}
	return newExport(path, x, cache), func() {}, nil
}

func (i *images) close() {
	for _, c := range i.closers {
		c()
	}
}

func (f *serveFlags) log() *slog.Logger {
	level := slog.LevelWarn
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// open makes an export of each index; the chunks of all of them share the memory.
func (f *serveFlags) open(ctx, fetching context.Context, indexes []string) ([]*nbd.Export, func(), error) {
	var exports []*nbd.Export
	var closers []func()
	closeAll := func() {
		for _, c := range closers {
			c()
		}
	}
	for _, name := range indexes {
		x, err := readIndex(ctx, name, f.access)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		from, err := openStores(f.stores, name, x.Algorithm(), 0)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		limits := view.Limits{Bytes: max(f.memory/int64(len(indexes)), 1), Fetches: from.fetches}
		cache := view.NewCache(fetching, from.chunks, limits)
		closers = append(closers, func() { cache.Close(); from.close() })
		exports = append(exports, newExport(name, x, cache))
	}
	return exports, closeAll, nil
}

func newExport(index string, x *blob.Index, cache *view.Cache) *nbd.Export {
	name := exportName(index)
	return &nbd.Export{
		Name:        name,
		Canonical:   name + "@" + x.Digest().String(),
		Description: fmt.Sprintf("%s, %s, index digest %v", name, size(x.Size()), x.Digest()),
		Device:      exported{view.New(x, cache)},
		ReadOnly:    true,
		MultiConn:   true,
	}
}

// exportName is the index's file name without .caibx.
func exportName(index string) string {
	if u, err := url.Parse(index); err == nil && u.Scheme != "" && u.Host != "" {
		index = u.Path
	}
	return strings.TrimSuffix(path.Base(filepath.ToSlash(index)), ".caibx")
}

// exported is an image as a device that the NBD server knows.
type exported struct{ *view.Image }

var (
	_ nbd.Device     = exported{}
	_ nbd.Extenter   = exported{}
	_ nbd.Prefetcher = exported{}
	_ nbd.Resident   = exported{}
)

// Extents implements nbd.Extenter.
func (e exported) Extents(off, n int64) iter.Seq[nbd.Extent] {
	return func(yield func(nbd.Extent) bool) {
		for length, zero := range e.Image.Extents(off, n) {
			if !yield(nbd.Extent{Length: length, Zero: zero}) {
				return
			}
		}
	}
}
