// Package sftp is a bucket in a directory of an SFTP server. The connections are made by the system's ssh, so that
// ~/.ssh/config, agents, jump hosts and known_hosts hold. The package knows nothing of digests and never tries
// twice: see store.Retry.
package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"sync"
	"time"

	"github.com/pkg/sftp"

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

	lines  lines
	litter litter
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
	o.Connections = cmp.Or(o.Connections, 4)
	o.Patience = cmp.Or(o.Patience, 30*time.Second)
	o.Program = cmp.Or(o.Program, os.Getenv("CAIRN_SSH"), "ssh")
	o.Mode = cmp.Or(o.Mode, 0o444)
	b := &Bucket{at: at, o: o, calls: make(chan struct{}, o.Connections*callsPerConnection)}
	b.life, b.die = context.WithCancel(context.Background())
	for range o.Connections {
		b.lines.all = append(b.lines.all, new(line))
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

// call is one call of a Bucket's method on a connection. It goes on by itself when its caller leaves, since the client's
// calls have no context.
type call struct {
	*conn
	bucket *Bucket
	ctx    context.Context // the caller's
	later  []func()
}

// afterwards has do run when the caller has its outcome.
func (k *call) afterwards(do func()) { k.later = append(k.later, do) }

// run has do work on an object by some connection, and returns when that does or ctx ends. So do may use no memory of
// the caller.
func run[T any](ctx context.Context, b *Bucket, what, name string, do func(*call, string) (T, error)) (T, error) {
	var none T
	if err := store.CheckName(name); err != nil {
		return none, err
	}
	value, err := runCall(ctx, b, func(k *call) (T, error) { return do(k, b.path(name)) })
	return value, b.describe(ctx, what, name, err)
}

// describe says in an error what was done to what.
func (b *Bucket) describe(ctx context.Context, what, name string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s %s: %w", what, b.shown(name), err)
}

// runCall is run for a call that names no object. Calls are limited in number until they have ended, whether or not
// their callers have left.
func runCall[T any](ctx context.Context, b *Bucket, do func(*call) (T, error)) (value T, err error) {
	if err := ctx.Err(); err != nil {
		return value, err
	}
	select {
	case b.calls <- struct{}{}:
	case <-ctx.Done():
		return value, ctx.Err()
	}
	l, c, err := b.connect(ctx)
	if err != nil {
		<-b.calls
		return value, err
	}
	type outcome struct {
		value T
		err   error
	}
	ended := make(chan outcome, 1)
	k := &call{conn: c, bucket: b, ctx: ctx}
	c.enter()
	go func() {
		defer func() {
			c.exit()
			<-b.calls
		}()
		value, err := do(k)
		b.lines.leave(l)
		ended <- outcome{value, explain(err)}
		for _, do := range k.later {
			do()
		}
	}()
	select {
	case o := <-ended:
		return o.value, o.err
	case <-ctx.Done():
		return value, ctx.Err()
	}
}

// explain tells what a server's status means.
func explain(err error) error {
	switch {
	case errors.Is(err, store.ErrDenied), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrUnavailable):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return store.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case errors.Is(err, sftp.ErrSSHFxNoConnection), errors.Is(err, sftp.ErrSSHFxConnectionLost):
		return &store.UnavailableError{Err: err}
	}
	return err
}

// Remove implements store.Remover. A server that flushes directories has the name off its disk when it returns.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	_, err := run(ctx, b, "removing", name, func(k *call, object string) (struct{}, error) {
		if err := k.removeFile(object); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, k.flushDir(path.Dir(object))
	})
	return err
}

// removeFile removes a file. The client would remove an empty directory, too.
func (k *call) removeFile(path string) error {
	a, err := k.attributes(k.client.Lstat(path))
	if err != nil {
		return err
	}
	if a.Mode&modeType == modeDir {
		return errors.New("not a regular file")
	}
	return k.check(k.client.Remove(path))
}
