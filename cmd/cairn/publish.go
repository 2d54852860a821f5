package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/internal/openfile"
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
	flags.Var(funcFlag{"location", func(text string) error {
		var base locate.Location
		err := locationFlag(&base).Set(text)
		f.bases = append(f.bases, base)
		return err
	}}, "base", "`index` whose chunks the store is known to hold; repeatable. No other chunk is asked for")
	flags.BoolVar(&f.createOnly, "create-only", false, "refuse (exit status 5) to replace an index that exists")
	addUploads(c, &f.uploads)
	check(c, func(args []string) error {
		if f.createOnly && openfile.Standard(args[0], stdout) == dash {
			return errors.New("--create-only: stdout is no place where an index could exist")
		}
		return nil
	})
}

// addUploads adds the flag for how much is sent at once.
func addUploads(c *cobra.Command, uploads *int) {
	c.Flags().IntVar(uploads, "uploads", 32, "how many `chunks` to ask for and send at once, to a store that is remote")
	checkRange(c, "uploads", uploads, 1024)
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

// wordCreate makes wrong usage of the error of a service that does not know how to create.
func wordCreate(err error) error {
	no, is := errors.AsType[*release.NoCreateError](err)
	if !is {
		return err
	}
	if no.Bucket != nil {
		err = fmt.Errorf("%v cannot tell whether an index is new, as --create-only asks: %w", no.Bucket, no.Err)
	}
	return hintError{unwritable(err), "leave --create-only out, or publish where names can be created: a directory, S3 as AWS has it, SFTP"}
}

// notePublished words what a publisher notes.
func notePublished(n release.Note) {
	switch n := n.(type) {
	case release.BaseLeftOut:
		if n.Err != nil {
			say("warning: %s is no base, as the store does not hold it whole: %v", n.At, n.Err)
			return
		}
		say("warning: %s is no base, as it has chunks of %v bytes, and others are made (--chunk-size)", n.At, n.Index.Params())
	case release.NotListed:
		say("warning: the store cannot be listed, so it was asked for each chunk: %v", n.Err)
	case release.AttributesLost:
		tellLost(n.Path, n.Err)
	}
}

// readBases reads the indexes of --base.
func (f *publish) readBases(ctx context.Context, a access) (bases []release.Base, err error) {
	for _, base := range f.bases {
		x, err := readIndex(ctx, base, a)
		if err != nil {
			return nil, err
		}
		bases = append(bases, release.Base{At: base, Index: x})
	}
	return bases, nil
}
