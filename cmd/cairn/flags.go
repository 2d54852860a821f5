package main

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/internal/plaintext"
	"cairn/store"
)

// common holds the flags that assemble, plan, make, verify and the store commands share.
type common struct {
	json     bool
	progress string
	scans    int // begun ones
	jobs     int
}

func (f *common) addFlags(c *cobra.Command) {
	addJSON(c, &f.json)
	c.Flags().IntVarP(&f.jobs, "jobs", "j", runtime.GOMAXPROCS(0), "number of `workers` that compute at the same time")
	f.progress = progressAuto
	c.Flags().Var(choiceFlag(&f.progress, progressAuto, progressBar, progressJSON, progressPercent, progressNone), "progress",
		"`style` of the progress display: auto, bar, json (one event per line on stderr), percent (lines as desync writes them) or none")
	checkRange(c, "jobs", &f.jobs, 1024)
}

func addJSON(c *cobra.Command, into *bool) {
	c.Flags().BoolVar(into, "json", false, "print the result as one JSON object on stdout")
}

// addCheck adds a check of the command line, which runs before the command. Its error is wrong usage.
func addCheck(c *cobra.Command, check func(args []string) error) {
	before := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if before != nil {
			if err := before(c, args); err != nil {
				return err
			}
		}
		if err := check(args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// checkRange refuses a flag's number below 1 and above most.
func checkRange(c *cobra.Command, name string, n *int, most int) {
	addCheck(c, func([]string) error {
		if *n < 1 || *n > most {
			return fmt.Errorf("--%s %d: want 1 to %d", name, *n, most)
		}
		return nil
	})
}

// compression holds the flags that set how chunks are stored.
type compression struct {
	form  string
	level int
}

func (f *compression) addFlags(c *cobra.Command, level string) {
	f.form = "zstd"
	c.Flags().Var(choiceFlag(&f.form, "zstd", "none"), "compression", "`method` of compression for new chunks: zstd or none")
	c.Flags().IntVar(&f.level, "compression-level", 3, level)
	checkRange(c, "compression-level", &f.level, 22)
}

func (f *compression) writerOptions() store.WriterOptions {
	o := store.WriterOptions{Level: f.level}
	if f.form == "none" {
		o.Compression = store.None
	}
	return o
}

// funcFlag is a flag whose values a function parses. kind names its type, and initial is its default in the help.
type funcFlag struct {
	kind, initial string
	set           func(text string) error
}

func (f funcFlag) String() string        { return f.initial }
func (f funcFlag) Type() string          { return f.kind }
func (f funcFlag) Set(text string) error { return f.set(text) }

// choiceFlag returns a flag whose value is one of words.
func choiceFlag(into *string, words ...string) funcFlag {
	return funcFlag{"word", *into, func(text string) error {
		if !slices.Contains(words, text) {
			return fmt.Errorf("want one of %s", strings.Join(words, ", "))
		}
		*into = text
		return nil
	}}
}

// bytesFlag returns a flag whose value is a number of bytes.
func bytesFlag(into *int64) funcFlag {
	initial := ""
	if *into > 0 {
		initial = plaintext.Size(*into)
	}
	return funcFlag{"size", initial, func(text string) (err error) {
		*into, err = parseBytes(text)
		return err
	}}
}

// limitFlag is bytesFlag for a limit of memory, disk space or bandwidth. It prints a note about a small number without a
// suffix, which may have been meant in another unit.
func limitFlag(into *int64) funcFlag {
	f := bytesFlag(into)
	parse := f.set
	f.set = func(text string) error {
		const few = 4096
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 && n < few {
			logf("note: a limit of %d is %d bytes; with a unit it is %dK, %dM or %dG", n, n, n, n, n)
		}
		return parse(text)
	}
	return f
}

// parseBytes parses a number of bytes such as 4096, 64K or 64KiB. Fractions such as 1.5 are refused.
func parseBytes(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB")
	shift, known := map[string]int{"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 63-shift)
	if !known || err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size (such as 4096, 64KiB, 2G)", text)
	}
	return n << shift, nil
}

// digestFlag returns a flag whose value is the name of a digest algorithm.
func digestFlag(into *blob.Algorithm) funcFlag {
	return funcFlag{"name", into.String(), func(text string) (err error) {
		*into, err = blob.ParseAlgorithm(text)
		return err
	}}
}
