package main

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/store"
	"cairn/store/cachedir"
	"cairn/store/locate"
)

// common holds the flags that assemble, plan, make, verify and the store commands share.
type common struct {
	json     bool
	progress string
	jobs     int
}

func (f *common) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.json, "json", false, "print the result as one JSON object on stdout")
	c.Flags().IntVarP(&f.jobs, "jobs", "j", runtime.GOMAXPROCS(0), "how many `workers` compute at once")
	progress := choice{&f.progress, []string{progressAuto, progressBar, progressJSON, progressNone}}
	f.progress = progressAuto
	c.Flags().Var(progress, "progress", "`how` to show progress: auto, bar, json (events, a line each, on stderr) or none")
	checkRange(c, "jobs", &f.jobs, 1024)
}

// stores are the flags that say where chunks are.
type stores struct {
	access
	groups     [][]locate.Location // stores that stand in for each other, in order
	cache      string
	cacheLimit int64 // 0 when it is the cache's to choose
	fetches    int   // 0: as many as fill the way to each store
	rateLimit  int64
}

func (f *stores) add(c *cobra.Command) {
	f.access.add(c)
	c.Flags().VarP(groupsFlag(&f.groups), "store", "s",
		"`location` of a store: a path or URL, or several that stand in for each other, A|B (\\| is a | in a name); "+
			"repeatable, tried in order (default: default.castr beside the index)")
	c.Flags().StringVarP(&f.cache, "cache", "c", "", "`directory` that keeps fetched chunks")
	c.Flags().Var(funcFlag{"size", func(text string) error {
		err := amount(&f.cacheLimit).Set(text)
		if err == nil && f.cacheLimit == 0 {
			f.cacheLimit = cachedir.Unlimited
		}
		return err
	}}, "cache-limit",
		"`size` that the cache may have; 0 is no limit (default: a tenth of its file system, at most half of what is free)")
	c.Flags().Var(amount(&f.rateLimit), "rate-limit", "read at most that many `bytes` a second from the stores")
	c.Flags().IntVar(&f.fetches, "fetches", 0, "how many `chunks` to ask a store for at once (default: as many as fill the way to it)")
	check(c, func([]string) error {
		if f.fetches < 0 || f.fetches > 1024 {
			return fmt.Errorf("--fetches %d: want 1 to 1024", f.fetches)
		}
		if f.cacheLimit != 0 && f.cache == "" {
			return fmt.Errorf("--cache-limit needs --cache DIRECTORY")
		}
		return nil
	})
}

// check adds a test of the command line that runs before the command, as a mistake in usage.
func check(c *cobra.Command, test func(args []string) error) {
	before := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if before != nil {
			if err := before(c, args); err != nil {
				return err
			}
		}
		if err := test(args); err != nil {
			return usageError{c, err}
		}
		return nil
	}
}

// checkRange refuses a flag's number below 1 and above most.
func checkRange(c *cobra.Command, name string, n *int, most int) {
	check(c, func([]string) error {
		if *n < 1 || *n > most {
			return fmt.Errorf("--%s %d: want 1 to %d", name, *n, most)
		}
		return nil
	})
}

// compression are the flags that say how chunks are stored.
type compression struct {
	form  string
	level int
}

func (f *compression) add(c *cobra.Command, level string) {
	f.form = "zstd"
	c.Flags().Var(choice{&f.form, []string{"zstd", "none"}}, "compression", "`how` to store chunks: zstd or none")
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

// funcFlag is a flag of a kind that a function takes.
type funcFlag struct {
	kind string
	set  func(text string) error
}

func (f funcFlag) String() string        { return "" }
func (f funcFlag) Type() string          { return f.kind }
func (f funcFlag) Set(text string) error { return f.set(text) }

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	words []string
}

func (f choice) String() string {
	if f.value == nil {
		return ""
	}
	return *f.value
}

func (f choice) Type() string { return "word" }

func (f choice) Set(text string) error {
	if !slices.Contains(f.words, text) {
		return fmt.Errorf("want one of %s", strings.Join(f.words, ", "))
	}
	*f.value = text
	return nil
}

// bytesFlag is a flag that takes a number of bytes, with or without a suffix.
type bytesFlag struct {
	value *int64
	limit bool // a small number without a suffix is noted: it may have been meant in another unit
}

// amount returns a flag for a limit of memory, of a disk or of a line.
func amount(value *int64) bytesFlag { return bytesFlag{value, true} }

func (f bytesFlag) String() string {
	if f.value == nil || *f.value == 0 {
		return ""
	}
	return size(*f.value)
}

func (f bytesFlag) Type() string { return "size" }

func (f bytesFlag) Set(text string) (err error) {
	const few = 4096
	if n, err := strconv.ParseInt(text, 10, 64); f.limit && err == nil && n > 0 && n < few {
		say("note: a limit of %d is %d bytes; with a unit it is %dK, %dM or %dG", n, n, n, n, n)
	}
	*f.value, err = parseBytes(text)
	return err
}

// parseBytes reads a number of bytes: 4096, 64K, 64KiB, 1.5 is refused.
func parseBytes(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB")
	shift, known := map[string]int{"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40}[text[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 63-shift)
	if !known || err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size (such as 4096, 64KiB, 2G)", text)
	}
	return n << shift, nil
}

// digestFlag is a flag that takes the name of a digest algorithm.
type digestFlag struct{ value *blob.Algorithm }

func (f digestFlag) String() string {
	if f.value == nil {
		return ""
	}
	return f.value.String()
}

func (f digestFlag) Type() string { return "name" }

func (f digestFlag) Set(text string) (err error) {
	*f.value, err = blob.ParseAlgorithm(text)
	return err
}
