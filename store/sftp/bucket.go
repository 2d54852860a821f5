// Package sftp implements a bucket in a directory of an SFTP server. The system's ssh makes the
// connections, so ~/.ssh/config, agents, jump hosts and known_hosts apply. The package knows
// nothing of digests and does not retry: see store.Retry.
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

	"cairn/internal/starter"
	"cairn/store"
)

// Options configures a Bucket. The zero value suits a wide-area network.
type Options struct {
	// Connections limits the ssh connections; 0 means 4. The first call opens the first one, and
	// concurrent calls open more.
	Connections int
	// Patience limits the time ssh may take to connect, and again the time to log in. A connection
	// with calls in flight ends after being silent for as long. 0 means 30 s.
	Patience time.Duration
	// Program is the ssh program; "" means the value of the environment variable CAIRN_SSH, or else
	// ssh.
	Program string
	// Config is a file that ssh reads instead of ~/.ssh/config and the system's configuration; ""
	// means none.
	Config string
	// Starter starts ssh; nil starts it as a child of this process.
	Starter *starter.Starter
	// Mode holds the permissions of objects, less the server's umask. 0 means 0444, the mode of
	// casync's chunks.
	Mode fs.FileMode
	// MakeRoot lets Write make the bucket's own directory and its parents. Without it, Write makes
	// only directories below, and a mistyped path is an error.
	MakeRoot bool
}

// Reasons for which a server, or ssh, refuses a request.
var (
	// ErrLogin is a store.ErrDenied: ssh cannot log in.
	ErrLogin = fmt.Errorf("%w to the server", store.ErrDenied)
	// ErrDenied is a store.ErrDenied: the user that ssh logs in as lacks a permission on a file.
	ErrDenied = fmt.Errorf("%w by the server", store.ErrDenied)
	// ErrHostKey reports that ssh cannot verify the server's host key.
	ErrHostKey = errors.New("the server's host key is not known, or has changed")
)

const callsPerConnection = 64

// Bucket keeps each object as a file of its name below a directory. It is safe for concurrent use,
// also by other buckets and programs in the same directory.
type Bucket struct {
	at       Location
	o        Options
	calls    chan struct{} // a semaphore for the calls in flight
	lifetime context.Context
	cancel   context.CancelFunc
	opening  sync.WaitGroup // the goroutines that open connections

	pool    connPool
	orphans orphanTemps
}

var (
	_ store.Bucket  = (*Bucket)(nil)
	_ store.Lister  = (*Bucket)(nil)
	_ store.Creator = (*Bucket)(nil)
	_ store.Remover = (*Bucket)(nil)

	_ store.RangeStreamer = (*Bucket)(nil)
)

// New returns a bucket at sftp://[user@]host[:port]/path, or below the user's home at
// sftp://host/~/path. The host may be an alias in ssh_config. A missing directory is like an empty
// one. New sends no request.
//
// The connections stay open until Close, or until the program ends for any reason.
func New(at Location, o Options) (*Bucket, error) {
	o = o.withDefaults()
	b := &Bucket{at: at, o: o, calls: make(chan struct{}, o.Connections*callsPerConnection)}
	b.lifetime, b.cancel = context.WithCancel(context.Background())
	for range o.Connections {
		b.pool.slots = append(b.pool.slots, new(connSlot))
	}
	return b, nil
}

func (o Options) withDefaults() Options {
	o.Connections = cmp.Or(o.Connections, 4)
	o.Patience = cmp.Or(o.Patience, 30*time.Second)
	o.Program = cmp.Or(o.Program, os.Getenv("CAIRN_SSH"), "ssh")
	o.Mode = cmp.Or(o.Mode, 0o444)
	return o
}

// Command returns the command that a bucket with these options starts for its connections.
func Command(at Location, o Options) starter.Command {
	o = o.withDefaults()
	return starter.Command{Program: o.Program, Args: sshArgs(at, o)}
}

// String implements store.Reader.
func (b *Bucket) String() string { return b.at.String() }

func (b *Bucket) path(name string) string { return path.Join(b.at.dir(), name) }

// objectURL returns an object's location, for messages.
func (b *Bucket) objectURL(name string) string {
	return b.at.String() + (&url.URL{Path: "/" + name}).EscapedPath()
}

// call is one call of a Bucket's method on a connection. It continues after its caller has
// returned, since the client's methods take no context.
type call struct {
	*conn
	bucket *Bucket
	ctx    context.Context // the caller's
	later  []func()
}

// runLater registers do to run after the caller has the outcome.
func (k *call) runLater(do func()) { k.later = append(k.later, do) }

// runOnObject calls do for an object on some connection, and returns when do returns or ctx ends.
// do may outlive runOnObject, so it must not use the caller's memory.
func runOnObject[T any](ctx context.Context, b *Bucket, what, name string, do func(*call, string) (T, error)) (T, error) {
	var none T
	if err := store.CheckName(name); err != nil {
		return none, err
	}
	value, err := runCall(ctx, b, func(k *call) (T, error) { return do(k, b.path(name)) })
	return value, b.describeError(ctx, what, name, err)
}

// describeError adds the operation and the object's location to an error.
func (b *Bucket) describeError(ctx context.Context, what, name string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s %s: %w", what, b.objectURL(name), err)
}

// runCall is runOnObject for a call without an object. A call counts toward the limit until it has
// ended, even if its caller has returned.
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
	c.beginCall()
	go func() {
		defer func() {
			c.endCall()
			<-b.calls
		}()
		value, err := do(k)
		b.pool.release(l)
		ended <- outcome{value, toStoreError(err)}
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

// toStoreError converts a server's status to the errors of package store.
func toStoreError(err error) error {
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

// Remove implements store.Remover. If the server can flush directories, the removal is durable when
// Remove returns.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	_, err := runOnObject(ctx, b, "removing", name, func(k *call, object string) (struct{}, error) {
		if err := k.removeFile(object); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, k.flushDir(path.Dir(object))
	})
	return err
}

// removeFile removes a file and refuses a directory. The client's Remove would remove an empty
// directory too.
func (k *call) removeFile(path string) error {
	a, err := k.attributes(k.client.Lstat(path))
	if err != nil {
		return err
	}
	if a.Mode&modeType == modeDir {
		return errors.New("not a regular file")
	}
	return k.convertError(k.client.Remove(path))
}
