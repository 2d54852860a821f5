package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

type storeCopyFlags struct {
	common
	reading
	level     int
	uploads   int
	indexesTo string
}

func newStoreCopy() *cobra.Command {
	var f storeCopyFlags
	c := &cobra.Command{
		Use:   "copy FROM TO [INDEX...]",
		Short: "Copy the chunks of indexes, or all, from one store to another",
		Long: `copy brings the chunks of the indexes, or without indexes all that FROM holds, to the store TO, as far as they are
not there yet. Each is hashed before it is written. Compressed chunks stay as they are, unless casync could not
read them. What was copied stays when copy is interrupted; run it again to do the rest.

--indexes-to copies the indexes too, each when all of its chunks are on the medium: what a mirror, or a site
without a network, needs. Exit status 3 says that chunks are damaged in FROM, 4 that some are missing; the others
are copied.`,
		Example: `  cairn store copy https://images.example.com/default.castr /media/usb/default.castr \
      https://images.example.com/v2.caibx --indexes-to /media/usb
  cairn store copy /srv/images/default.castr s3://mirror/default.castr`,
		Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			err := runStoreCopy(c.Context(), c.OutOrStdout(), f, args)
			switch {
			case errors.Is(err, keep.ErrCannotList):
				return usageError{c, fmt.Errorf("%w: name indexes", err)}
			case is[unwritableError](err):
				return usageError{c, err}
			}
			return err
		},
	}
	f.common.add(c)
	f.reading.add(c)
	addUploads(c, &f.uploads)
	c.Flags().IntVar(&f.level, "compression-level", 3, "zstd `level` for chunks that are compressed anew, 1 to 22")
	c.Flags().StringVar(&f.indexesTo, "indexes-to", "", "`location` to copy the indexes to: a directory, or a URL like one")
	check(c, func(args []string) error {
		if f.level < 1 || f.level > 22 {
			return fmt.Errorf("--compression-level %d: want 1 to 22", f.level)
		}
		if f.indexesTo != "" && (len(args) < 3 || slices.Contains(args[2:], "-")) {
			return errors.New("--indexes-to: name the indexes to copy")
		}
		if f.indexesTo == "" {
			return nil
		}
		return differentNames(args[2:])
	})
	return c
}

// differentNames says which indexes could not be copied to one place, as one would replace another.
func differentNames(locations []string) error {
	named := map[string]string{}
	for _, location := range locations {
		name, err := locate.IndexName(location)
		if err != nil {
			continue // to read it says why
		}
		if other, is := named[name]; is && other != location {
			return fmt.Errorf("--indexes-to: two of the indexes are called %q", name)
		}
		named[name] = location
	}
	return nil
}

// storeCopied is what store copy --json prints.
type storeCopied struct {
	From string `json:"from"`
	To   string `json:"to"`
	keep.CopyReport
	Indexes  []string `json:"indexes,omitempty"`  // that were copied
	Findings []told   `json:"findings,omitempty"` // the first of them
	Seconds  float64  `json:"seconds"`
}

func runStoreCopy(ctx context.Context, stdout io.Writer, f storeCopyFlags, args []string) error {
	indexes, err := f.readIndexes(ctx, args[2:])
	if err != nil {
		return err
	}
	from, err := f.openStore(args[0])
	if err != nil {
		return err
	}
	to, err := f.openBucket(args[1], 0)
	if err != nil {
		return err
	}
	publish, err := f.openIndexes(ctx, args[2:])
	if err != nil {
		return err
	}
	result := storeCopied{From: locate.Public(args[0]), To: locate.Public(args[1])}
	if err := f.copy(ctx, from, to, indexes, &result); err != nil {
		return fmt.Errorf("copying %s to %s: %w", result.From, result.To, err)
	}
	for i, x := range indexes {
		if publish == nil || !result.Whole[i] {
			continue
		}
		if err := publish(ctx, args[2+i], x); err != nil {
			return err
		}
		result.Indexes = append(result.Indexes, locate.Public(args[2+i]))
	}
	if f.json {
		err = writeJSON(stdout, result)
	} else {
		tellCopied(result)
	}
	return errors.Join(err, result.failure())
}

// openIndexes opens where indexes are copied to, if they are, and finds out early that they can be.
func (f *storeCopyFlags) openIndexes(ctx context.Context, locations []string) (func(context.Context, string, *blob.Index) error, error) {
	const mode = fs.FileMode(0o644)
	if f.indexesTo == "" {
		return nil, nil
	}
	b, err := f.openBucket(f.indexesTo, mode)
	if err != nil {
		return nil, err
	}
	wrap := func(location string, err error) error {
		return fmt.Errorf("copying index %s to %s: %w", locate.Public(location), locate.Public(f.indexesTo), err)
	}
	for _, location := range locations {
		name, err := locate.IndexName(location)
		if err == nil {
			err = f.checkIndex(ctx, b, name)
		}
		if err != nil {
			return nil, wrap(location, err)
		}
	}
	return func(ctx context.Context, location string, x *blob.Index) error {
		name, err := locate.IndexName(location)
		if err == nil {
			err = b.Write(ctx, name, x.Encode())
		}
		if err != nil {
			return wrap(location, err)
		}
		return nil
	}, nil
}

// checkIndex reports why an index of that name could not be copied, as far as it can be known before.
func (f *storeCopyFlags) checkIndex(ctx context.Context, b store.Bucket, name string) error {
	if locate.Remote(f.indexesTo) {
		return reachable(ctx, b, name, false)
	}
	return checkFile(filepath.Join(f.indexesTo, name))
}

func (f *storeCopyFlags) copy(ctx context.Context, from store.Reader, to store.Bucket, indexes []*blob.Index, result *storeCopied) (err error) {
	o := keep.CopyOptions{
		Algorithm: f.algorithm(), Indexes: indexes, Workers: f.workers(result.From, f.jobs),
		Writer: store.WriterOptions{Level: f.level},
	}
	if locate.Remote(result.To) {
		o.Writer.Uploads = f.uploads
		o.Workers = max(o.Workers, f.uploads)
	}
	total := int64(-1)
	if len(indexes) > 0 {
		total = keep.DistinctBytes(indexes)
	}
	p := newProgress(f.progress, "copying "+result.From+" to "+result.To, total)
	o.Show = func(r keep.CopyReport) { p.show(r.Done, chunks(r.Copied.Chunks, "copied"), r) }
	o.Found = func(found keep.Finding) {
		if len(result.Findings) < findingsMost {
			result.Findings = append(result.Findings, tell(found))
		}
		if !f.json {
			say("%s: %v", found.Kind, found.Err)
		}
	}
	result.CopyReport, err = keep.Copy(ctx, from, to, o)
	p.end()
	result.Seconds = p.took().Seconds()
	return err
}

func tellCopied(r storeCopied) {
	say("copied %s (%s) from %s to %s, which held %s already", chunks(r.Copied.Chunks), size(r.Copied.Bytes), r.From, r.To, chunks(r.Held))
	if len(r.Indexes) > 0 {
		say("copied %s", strings.Join(r.Indexes, ", "))
	}
}

// failure says what could not be copied.
func (r storeCopied) failure() error {
	bad := r.Bad()
	switch {
	case bad == 0:
		return nil
	case r.Missing == bad:
		return hintError{fmt.Errorf("%s lacks %s: %w", r.From, chunks(bad), store.ErrNotFound), "what it has was copied; copy the rest from another store"}
	}
	return damagedError{fmt.Sprintf("%s could not be copied from %s: %d damaged, %d empty, %d missing, %d of unknown compression",
		chunks(bad), r.From, r.Damaged, r.Empty, r.Missing, r.Unknown)}
}
