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
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/view"
	"cairn/nbd"
)

type serveFlags struct {
	stores
	listen  []string
	memory  int64
	verbose bool
}

func newServe() *cobra.Command {
	f := serveFlags{memory: 256 << 20}
	f.patience = 10 * time.Minute
	c := &cobra.Command{
		Use:   "serve INDEX...",
		Short: "Export images over NBD, fetching chunks when they are read",
		Long: `serve exports the image of each INDEX (a path or URL) read-only over NBD. A chunk is fetched when it is first
read, once however many ask, checked, and kept in memory for a while. A chunk that cannot be fetched fails
only the reads that need it, and is asked for anew by the next one.

An export is named as its index file without .caibx, and also NAME@DIGEST with the digest of the index, which
never stands for another image; the first export answers to the empty name too. The URIs are printed when
clients can connect. SIGINT or SIGTERM lets the reads under way end, and exits with status 0.`,
		Example: `  cairn serve v2.caibx --listen unix:/run/v2.sock
  cairn serve https://images.example.com/v2.caibx --listen tcp:127.0.0.1:10809
  qemu-system-x86_64 -drive file=nbd+unix:///v2?socket=/run/v2.sock,format=raw,if=virtio,readonly=on …`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return runServe(c.Context(), c.OutOrStdout(), f, args) },
	}
	f.add(c)
	c.Flags().StringArrayVar(&f.listen, "listen", nil,
		"`address` to listen on: unix:PATH or tcp:HOST:PORT; repeatable (default: a unix socket in the runtime directory)")
	c.Flags().Var(bytesFlag{&f.memory}, "memory", "keep at most that many `bytes` of chunks in memory, of all exports together")
	check(c, func([]string) error {
		for _, address := range f.listen {
			if network, at, ok := strings.Cut(address, ":"); !ok || at == "" || network != "unix" && network != "tcp" {
				return fmt.Errorf("--listen %s: want unix:PATH or tcp:HOST:PORT", address)
			}
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
	fetching, end := context.WithCancel(context.WithoutCancel(ctx)) // reads under way may end after a signal
	defer end()
	exports, closeExports, err := f.open(ctx, fetching, indexes)
	if err != nil {
		return err
	}
	defer closeExports()
	static, err := nbd.NewStatic(exports...)
	if err != nil {
		return err
	}
	if len(f.listen) == 0 {
		dir, err := socketDir()
		if err != nil {
			return err
		}
		defer os.Remove(dir)
		f.listen = []string{"unix:" + filepath.Join(dir, "nbd.sock")}
	}
	listeners, err := listenAll(f.listen)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		for _, e := range exports {
			fmt.Fprintln(stdout, exportURI(l.Addr(), e.Name))
		}
	}
	server := &nbd.Server{Exports: static, Log: f.log()}
	group, groupCtx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(groupCtx, l) })
	}
	return group.Wait()
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

// listenAll opens all addresses, or none.
func listenAll(addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		l, err := listen(address)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// socketDir is a new directory for a socket, in the user's runtime directory.
func socketDir() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = os.TempDir()
	}
	dir, err := os.MkdirTemp(dir, "cairn-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the socket: %w", err)
	}
	return dir, nil
}

func listen(address string) (net.Listener, error) {
	network, at, _ := strings.Cut(address, ":")
	if network == "unix" {
		return listenUnix(at)
	}
	return net.Listen("tcp", at)
}

// listenUnix takes the place of a socket whose server is gone.
func listenUnix(at string) (net.Listener, error) {
	l, err := net.Listen("unix", at)
	if !errors.Is(err, syscall.EADDRINUSE) || !abandoned(at) {
		return l, err
	}
	if err := os.Remove(at); err != nil {
		return nil, err
	}
	return net.Listen("unix", at)
}

// abandoned says whether at is a socket that nobody listens on.
func abandoned(at string) bool {
	info, err := os.Lstat(at)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", at, time.Second)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// exportURI is the export's address as NBD clients take it (NetworkBlockDevice/nbd, doc/uri.md).
func exportURI(at net.Addr, name string) string {
	if at.Network() == "unix" {
		name, socket := url.URL{Path: name}, url.URL{Path: at.String()}
		return "nbd+unix:///" + name.EscapedPath() + "?socket=" + socket.EscapedPath()
	}
	u := url.URL{Scheme: "nbd", Host: at.String(), Path: "/" + name}
	return u.String()
}
