package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/store/gcroot"
	"cairn/store/locate"
)

// publish holds the flags for publishing an index and its chunks.
type publish struct {
	bases      []locate.Location
	createOnly bool
	uploads    int
	gcRoot
}

func (f *publish) addFlags(c *cobra.Command) {
	f.addBases(c)
	c.Flags().BoolVar(&f.createOnly, "create-only", false, "refuse (exit status 5) to replace an existing index")
	addUploads(c, &f.uploads)
	f.gcRoot.addFlag(c)
	addCheck(c, func(args []string) error {
		if f.createOnly && openfile.Standard(args[0], openfile.Stdout) == openfile.Dash {
			return errors.New("--create-only: an index on stdout cannot exist already")
		}
		return nil
	})
}

func (f *publish) addBases(c *cobra.Command) {
	c.Flags().Var(locationsFlag(&f.bases), "base", "`index` whose chunks the store holds, so that the store need not be listed; repeatable")
}

func addUploads(c *cobra.Command, uploads *int) {
	c.Flags().IntVar(uploads, "uploads", 32, "number of `chunks` to look up and send at the same time, to a remote store")
	checkRange(c, "uploads", uploads, 1024)
}

// readBases reads the indexes of --base.
func (f *publish) readBases(ctx context.Context, a access) (bases []release.Base, err error) {
	indexes, err := readIndexes(ctx, f.bases, a)
	for i, x := range indexes {
		bases = append(bases, release.Base{At: f.bases[i], Index: x})
	}
	return bases, err
}

// gcRoot holds the flag for the gc roots of what is published.
type gcRoot struct{ managed bool }

func (f *gcRoot) addFlag(c *cobra.Command) {
	const always, managed = "always", "managed"
	c.Flags().Var(funcFlag{"when", always, func(text string) error {
		if text != always && text != managed {
			return fmt.Errorf("want %s, or %s: only in a store that gc manages", always, managed)
		}
		f.managed = text == managed
		return nil
	}}, "gc-root", "`when` to write a gc root beside the store: always, or only if gc manages the store (managed)")
}

// open opens the gc roots of a store for publishing. They are nil if it has none.
func (f *gcRoot) open(ctx context.Context, at *access, of locate.Location) (*gcroot.Dir, error) {
	a, err := at.openAccess()
	if err != nil {
		return nil, err
	}
	records, err := release.OpenRecords(ctx, a, of,
		release.RecordsOptions{Options: gcroot.Options{Waiting: logWaiting}, Managed: f.managed, Notes: logReleaseNote})
	if hasType[*release.ManagedError](err) {
		err = hintError{usageError{err}, "publish through a location that can be listed: a directory, S3, SFTP"}
	}
	return records, err
}

func logWaiting(others string) { logf("waiting: %s", others) }

// explainNoCreate marks the error of a service that cannot create an index as wrong usage, and adds a hint.
func explainNoCreate(err error) error {
	no, is := errors.AsType[*release.NoCreateError](err)
	if !is {
		return err
	}
	if no.Bucket != nil {
		err = fmt.Errorf("%v cannot tell whether an index is new, as --create-only asks: %w", no.Bucket, no.Err)
	}
	return hintError{usageIfUnsupported(err), "leave --create-only out, or publish to a location that can create names: a directory, AWS's S3, SFTP"}
}

// logReleaseNote prints a note of a publisher.
func logReleaseNote(n release.Note) {
	switch n := n.(type) {
	case release.BaseLeftOut:
		if n.Err != nil {
			logf("warning: base %s is not used, as the store may lack some of its chunks: %v", n.At, n.Err)
			return
		}
		logf("warning: base %s is not used: its chunk sizes are %v bytes, and others are made (--chunk-size)", n.At, n.Index.Params())
	case release.NotListed:
		logf("warning: the store cannot be listed, so it was asked for each chunk: %v", n.Err)
	case release.NotRecorded:
		logf("warning: gc will not know that this index needs its chunks, because it gets no gc root beside the store: %v", n.Err)
	case release.AttributesLost:
		warnAttributesLost(n.Path, n.Err)
	}
}
