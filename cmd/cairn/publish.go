package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/store"
	"cairn/store/locate"
)

// publish are the flags that say how an index and its chunks are put where others find them.
type publish struct {
	bases      []locate.Location
	createOnly bool
	uploads    int
}

func (f *publish) add(c *cobra.Command) {
	flags := c.Flags()
	flags.Var(locationsFlag{&f.bases}, "base", "`index` whose chunks the store is known to hold; repeatable. No other chunk is asked for")
	flags.BoolVar(&f.createOnly, "create-only", false, "refuse (exit status 5) to replace an index that exists")
	addUploads(c, &f.uploads)
	check(c, func(args []string) error {
		if f.createOnly && standard(args[0], stdout) == dash {
			return errors.New("--create-only: stdout is no place where an index could exist")
		}
		return nil
	})
}

// addUploads adds the flag for how much is sent at once.
func addUploads(c *cobra.Command, uploads *int) {
	c.Flags().IntVar(uploads, "uploads", 32, "how many `chunks` to ask for and send at once, to a store that is remote")
	check(c, func([]string) error {
		if *uploads < 1 || *uploads > 1024 {
			return fmt.Errorf("--uploads %d: want 1 to 1024", *uploads)
		}
		return nil
	})
}

// destination is where make writes to.
type destination struct {
	index   locate.Location
	image   string
	publish func(context.Context, *blob.Index) error
	bucket  store.Bucket
	remote  bool
	access  access // to the bases
}

// atOnce is how many chunks are on their way beside the workers: a directory would not gain by it.
func (f *publish) atOnce(to destination) int {
	if to.remote {
		return f.uploads
	}
	return 0
}

// unwritableError says that a kind of location cannot be written as it was asked to, whatever it holds.
type unwritableError struct{ err error }

func (e unwritableError) Error() string { return e.err.Error() }
func (e unwritableError) Unwrap() error { return e.err }

func unwritable(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return unwritableError{err}
	}
	return err
}

// openRemote opens a store to write, if it is remote; else it is nil.
func openRemote(at locate.Location, a locate.Access) (store.Bucket, error) {
	if !at.Remote() {
		return nil, nil
	}
	b, err := a.OpenBucket(at)
	return b, unwritable(err)
}

// openOutlet finds out early that an index can be written there, and returns what publishes it.
func openOutlet(ctx context.Context, index locate.Location, createOnly bool, a locate.Access) (func(context.Context, *blob.Index) error, error) {
	path, local := index.Local()
	if index.IsStream() || local && isStream(path) {
		return openStreamOutlet(ctx, cmp.Or(path, dash))
	}
	b, name, err := a.FileBucket(index)
	if err != nil {
		return nil, unwritable(err)
	}
	publish, err := outletIn(ctx, b, name, createOnly)
	if err != nil || !local {
		return publish, err
	}
	if err := checkFile(path); err != nil {
		return nil, err
	}
	if !createOnly {
		publish = func(_ context.Context, x *blob.Index) error { return writeIndex(path, x) }
	}
	return publish, nil
}

// openStreamOutlet returns what writes an index to stdout or another stream.
func openStreamOutlet(ctx context.Context, name string) (func(context.Context, *blob.Index) error, error) {
	out, err := openOutput(ctx, name)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, x *blob.Index) error {
		_, err := x.WriteTo(out)
		return errors.Join(err, out.finish())
	}, nil
}

func outletIn(ctx context.Context, b store.Bucket, name string, createOnly bool) (func(context.Context, *blob.Index) error, error) {
	write := b.Write
	if createOnly {
		creator, can := store.As[store.Creator](b)
		if !can {
			return nil, cannotCreate(fmt.Errorf("%v cannot tell whether an index is new, as --create-only asks: %w", b, errors.ErrUnsupported))
		}
		write = creator.Create
	}
	err := reachable(ctx, b, name, createOnly)
	if checker, can := store.As[store.CreateChecker](b); can && err == nil && createOnly {
		err = checker.CheckCreate(ctx)
	}
	if err != nil {
		return nil, cannotCreate(err)
	}
	return func(ctx context.Context, x *blob.Index) error {
		err := write(ctx, name, x.Encode())
		if createOnly {
			err = cannotCreate(err)
		}
		return err
	}, nil
}

// cannotCreate makes wrong usage of the error of a service that does not know how to create.
func cannotCreate(err error) error {
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return hintError{unwritable(err), "leave --create-only out, or publish where names can be created: a directory, S3 as AWS has it, SFTP"}
}

// reachable asks for an index that is to be written: a store that is away, or an index that must not be there,
// is found before the work. A store may let others write what they may not read.
func reachable(ctx context.Context, b store.Bucket, name string, createOnly bool) error {
	_, err := b.Stat(ctx, name)
	switch {
	case err == nil && createOnly:
		return store.ErrExists
	case errors.Is(err, store.ErrUnavailable):
		return err
	}
	return ctx.Err()
}

// writeIndex writes an index to a file, whole and durable, without holding it in memory twice.
func writeIndex(path string, x *blob.Index) error {
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := x.WriteTo(f); err != nil {
		return err
	}
	return commit(path, f)
}

// expected is what is known of an image before it is cut.
type expected struct {
	algorithm blob.Algorithm
	params    blob.Params
	chunks    int64 // 0 or less when it is not known
}

// publisher writes chunks to a store, and knows which are there.
type publisher struct {
	*store.Writer
	inventory *store.Inventory // or nil
}

// openWriter opens the store to write, with what is the cheapest way to know its chunks: indexes that are
// published there, a listing if it is remote, else asking.
func (f *publish) openWriter(ctx context.Context, to destination, o store.WriterOptions, want expected) (publisher, error) {
	var p publisher
	known, err := f.openBases(ctx, to, want)
	switch {
	case err != nil:
		return p, err
	case known != nil:
		o.Known = known
	case to.remote:
		p.inventory = store.TakeInventory(ctx, to.bucket, store.InventoryOptions{Chunks: want.chunks})
		o.Known = p.inventory
	}
	if p.Writer, err = store.NewWriter(to.bucket, o); err != nil {
		p.close()
	}
	return p, err
}

func (p publisher) close() {
	if p.Writer != nil {
		_ = p.Writer.Close() // what counts was committed
	}
	if p.inventory != nil {
		p.inventory.Close()
	}
}

// warn says what made it slower than it could have been.
func (p publisher) warn() {
	if p.inventory != nil && p.inventory.Err() != nil {
		say("warning: the store cannot be listed, so it was asked for each chunk: %v", p.inventory.Err())
	}
}

// openBases is what the bases hold, or nil. One that the store does not hold whole, or with other chunk sizes than are
// made, is left out.
func (f *publish) openBases(ctx context.Context, to destination, want expected) (store.Haser, error) {
	var known *store.Set
	for _, base := range f.bases {
		x, err := readIndex(ctx, base, to.access)
		if err != nil {
			return nil, err
		}
		if x.Algorithm() != want.algorithm {
			return nil, fmt.Errorf("base %s has %v digests, and %v are made", base, x.Algorithm(), want.algorithm)
		}
		if x.Params() != want.params {
			say("warning: %s is no base, as it has chunks of %s bytes, and others are made (--chunk-size)", base, sizesOf(x))
			continue
		}
		err = sample(ctx, to.bucket, x)
		if errors.Is(err, store.ErrNotFound) {
			say("warning: %s is no base, as the store does not hold it whole: %v", base, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if known == nil {
			known = new(store.Set)
		}
		known.Add(x)
	}
	if known == nil {
		return nil, nil
	}
	return known, nil
}

// sample asks for some of the chunks of an index, spread over the image: of a store that lost one in ten, 32
// of them miss none once in thirty times.
func sample(ctx context.Context, b store.Bucket, x *blob.Index) error {
	const most, oneIn = 32, 256
	chunks, n := store.NewChunks(b, x.Algorithm()), min(x.Len()/oneIn+1, most, x.Len())
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range n {
		group.Go(func() error {
			_, err := chunks.Stat(groupCtx, x.At((2*i+1)*x.Len()/(2*n)).Digest)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
