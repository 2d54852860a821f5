// Package sftp is a bucket in a directory of an SFTP server. The connections are made by the system's ssh, so that
// ~/.ssh/config, agents, jump hosts and known_hosts hold. The package knows nothing of digests and never tries
// twice: see store.Retry.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"sync"
	"time"

	"cairn/store"
)

// Options are the choices for a Bucket. The zero value suits a wide-area network.
type Options struct {
	// Connections is how many ssh connections there may be; 0 is 4. The first call opens the first one, calls at
	// the same time open more.
	Connections int
	// Patience is how long ssh may take to connect, as long again to log in, and how long a connection may be
	// silent while something is asked of it: then it is ended; 0 is 30 s.
	Patience time.Duration
	// Program is ssh; "" is the one that the environment variable CAIRN_SSH names, or else ssh.
	Program string
	// Config is a file that ssh reads instead of ~/.ssh/config and the system's; "" is none.
	Config string
	// Mode is the permissions of objects, less the server's umask; 0 is 0444, as casync's chunks have.
	Mode fs.FileMode
	// MakeRoot has Write make the bucket's own directory, with its parents, too. Without it, only directories
	// below are made, and a mistyped path is an error.
	MakeRoot bool
}

// What a server, or ssh, refuses.
var (
	// ErrLogin is a store.ErrDenied: ssh cannot log in.
	ErrLogin = fmt.Errorf("%w to the server", store.ErrDenied)
	// ErrDenied is a store.ErrDenied: the user that ssh logs in as may not do that to a file.
	ErrDenied = fmt.Errorf("%w by the server", store.ErrDenied)
	// ErrHostKey says that ssh does not believe who the server is.
	ErrHostKey = errors.New("the server's host key is not known, or has changed")
)

const callsPerConnection = 64

// Bucket keeps each object as a file of its name below a directory. Safe for concurrent use, also by other buckets
// and programs in the same directory.
type Bucket struct {
	at    Location
	o     Options
	calls chan struct{} // under way
	life  context.Context
	die   context.CancelFunc
	work  sync.WaitGroup // what opens connections

	mu     sync.Mutex
	lines  []*line
	litter []string // temporary files that could not be removed when their connection broke
}

var (
	_ store.Bucket  = (*Bucket)(nil)
	_ store.Lister  = (*Bucket)(nil)
	_ store.Creator = (*Bucket)(nil)
	_ store.Remover = (*Bucket)(nil)
)

// New is a bucket at sftp://[user@]host[:port]/path, or below the user's home at sftp://host/~/path. The host may
// be one of ssh_config. A missing directory is like an empty one. Nothing is asked of the server yet.
//
// The connections stay open until Close, or until the program ends, however it ends.
func New(at Location, o Options) (*Bucket, error) {
	if o.Connections == 0 {
		o.Connections = 4
	}
	if o.Patience == 0 {
		o.Patience = 30 * time.Second
	}
	if o.Program == "" {
		o.Program = os.Getenv("CAIRN_SSH")
	}
	if o.Program == "" {
		o.Program = "ssh"
	}
	if o.Mode == 0 {
		o.Mode = 0o444
	}
	b := &Bucket{at: at, o: o, calls: make(chan struct{}, o.Connections*callsPerConnection)}
	b.life, b.die = context.WithCancel(context.Background())
	for range o.Connections {
		b.lines = append(b.lines, new(line))
	}
	return b, nil
}

// String implements store.Reader.
func (b *Bucket) String() string { return b.at.String() }

func (b *Bucket) path(name string) string { return path.Join(b.at.dir(), name) }

// shown is an object's location, for messages.
func (b *Bucket) shown(name string) string {
	return b.at.String() + (&url.URL{Path: "/" + name}).EscapedPath()
}

// call has use work on an object by some connection. It says in every error what was done to what.
func (b *Bucket) call(ctx context.Context, what, name string, use func(*conn, string) error) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	err := b.limited(ctx, func(c *conn) error { return use(c, b.path(name)) })
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s %s: %w", what, b.shown(name), err)
}

// limited is with for one of so many calls at once.
func (b *Bucket) limited(ctx context.Context, use func(*conn) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case b.calls <- struct{}{}:
		defer func() { <-b.calls }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return b.with(ctx, use)
}

// with has use work with a connection, and makes of its error what a store.Reader promises.
func (b *Bucket) with(ctx context.Context, use func(*conn) error) error {
	l, c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer b.leave(l)
	err = use(c)
	if errors.Is(err, errGarbled) {
		c.abort(err)
	}
	return explain(err)
}

// explain tells what a server's status means.
func explain(err error) error {
	s, ok := errors.AsType[*status](err)
	if !ok || errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrExists) {
		return err
	}
	switch s.code {
	case statusNoSuchFile:
		return store.ErrNotFound
	case statusDenied:
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case statusNoConnection, statusLost:
		return &store.UnavailableError{Err: err}
	}
	return err
}

// hasCode says whether err is a server's status with that code.
func hasCode(err error, code uint32) bool {
	s, ok := errors.AsType[*status](err)
	return ok && s.code == code
}

// Stat implements store.Reader.
func (b *Bucket) Stat(ctx context.Context, name string) (size int64, err error) {
	err = b.call(ctx, "reading", name, func(c *conn, path string) error {
		a, err := c.ask(ctx, pathPacket(typeStat, path))
		if err != nil {
			return err
		}
		size, err = fileSize(a)
		return err
	})
	return size, err
}

// Remove implements store.Remover. A server that flushes directories has the name off its disk when it returns.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	return b.call(ctx, "removing", name, func(c *conn, object string) error {
		if err := c.do(ctx, pathPacket(typeRemove, object)); err != nil {
			return err
		}
		w := writing{ctx: ctx, bucket: b, conn: c}
		return w.flushDir(path.Dir(object))
	})
}

// Read implements store.Reader.
func (b *Bucket) Read(ctx context.Context, name string, dst []byte, limit int64) (out []byte, err error) {
	err = b.call(ctx, "reading", name, func(c *conn, path string) error {
		handle, err := c.open(ctx, openPacket(path, flagRead))
		if err != nil {
			return err
		}
		defer c.closeHandle(handle)
		r := reading{ctx: ctx, conn: c, handle: handle}
		out, err = r.all(dst, limit)
		return err
	})
	return out, err
}

// Stream implements store.Streamer.
func (b *Bucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	return b.call(ctx, "reading", name, func(c *conn, path string) error {
		handle, err := c.open(ctx, openPacket(path, flagRead))
		if err != nil {
			return err
		}
		defer c.closeHandle(handle)
		r := &reading{ctx: ctx, conn: c, handle: handle}
		size, err := r.begin(limit)
		if err != nil {
			return err
		}
		return use(&stream{reading: r, size: size})
	})
}

// fileSize is the size of a regular file whose attributes were asked for.
func fileSize(a answer) (int64, error) {
	attrs, err := a.attributes()
	switch {
	case err != nil:
		return 0, err
	case !attrs.complete():
		return 0, errors.New("the server does not tell the size")
	case !attrs.isRegular():
		return 0, errors.New("not a regular file")
	case int64(attrs.size) < 0:
		return 0, errGarbled
	}
	return int64(attrs.size), nil
}
