package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob/profile"
	"cairn/internal/openfile"
	"cairn/nbd/export"
	"cairn/store/locate"
	"cairn/store/supply"
)

// The values of --prefetch.
const (
	prefetchNone    = "none"
	prefetchProfile = "profile"
	prefetchAll     = "all"
)

// imageFlags holds the flags of serve's memory, prefetches and recordings.
type imageFlags struct {
	memory       int64
	prefetch     string
	prefetchRate int64
	profile      locate.Location
	profileWord  string // profileAuto, profileNone or "" for profile
	record       string
	recordTime   time.Duration
	stallTimeout time.Duration
}

func (f *imageFlags) addFlags(c *cobra.Command) {
	flags := c.Flags()
	flags.Lookup("cache").Usage = "`directory` that keeps downloaded images across restarts"
	flags.Lookup("cache-limit").Usage = "maximum `size` of all images in --cache; 0 is no limit (default: their size at the start, plus half of the free space)"
	f.memory, f.prefetch, f.profileWord = 256<<20, prefetchProfile, profileAuto
	flags.Var(limitFlag(&f.memory), "memory", "maximum `bytes` of chunks in memory, of all exports together")
	flags.Var(choiceFlag(&f.prefetch, prefetchNone, prefetchProfile, prefetchAll), "prefetch",
		"`what` to download before it is read: none, profile (the chunks of a boot profile), or all (needs --cache)")
	flags.Var(limitFlag(&f.prefetchRate), "prefetch-rate", "with --prefetch all: prefetch at most this many `bytes` per second (default: no limit)")
	flags.Var(f.profileFlag(), "profile", "`file` with a boot profile; auto is NAME.caprf beside NAME.caibx, if it exists; none disables profiles")
	flags.StringVar(&f.record, "record", "", "record the chunks that clients read, in order, into this profile `file`; - is stdout, at the end, with --print-uri=false")
	allowDash(c, "record")
	flags.DurationVar(&f.recordTime, "record-time", 5*time.Minute, "with --record: how long to record after the first read; 0 is no limit")
	flags.DurationVar(&f.stallTimeout, "stall-timeout", 10*time.Minute,
		"how long a read, or the start, waits for stores that do not answer before it fails; 0 is no limit")
}

// checkImages checks the flags against --cache, --watch and the number of indexes.
func (f *imageFlags) checkImages(cache, watch string, indexes int) error {
	switch {
	case f.prefetch == prefetchAll && cache == "":
		return errors.New("--prefetch all needs --cache DIRECTORY for the images")
	case f.record != "" && (indexes != 1 || watch != ""):
		return errors.New("--record is for one image: name one INDEX")
	case f.recordTime < 0 || f.stallTimeout < 0:
		return errors.New("--record-time and --stall-timeout: want 0 or more")
	}
	return nil
}

// The values of --profile that are not files.
const (
	profileAuto = "auto"
	profileNone = "none"
)

// profileFlag returns a flag whose value is the location of a profile, or a word.
func (f *imageFlags) profileFlag() funcFlag {
	return funcFlag{"location", f.profileWord, func(text string) error {
		f.profileWord, f.profile = "", locate.Location{}
		if text == profileAuto || text == profileNone {
			f.profileWord = text
			return nil
		}
		err := locationFlag(&f.profile).set(text)
		if f.profile.IsStream() {
			err = errors.New("a profile is read for each image, and not from stdin; a file of that name is ./-")
		}
		return err
	}}
}

// exportOptions returns the options of the exports. maxRequests limits those to each store, imageFiles the descriptors
// of the images of --watch. setMemoryLimit is called with the memory of the indexes.
func (f *serveFlags) exportOptions(
	log *slog.Logger, maxRequests, imageFiles int, setMemoryLimit func(indexes int64),
) export.Options {
	notes := &exportNotes{log: log, manager: f.manager}
	o := export.Options{
		Indexes: f.indexes, Accept: f.accept, Directory: f.watchDir,
		Access: f.releaseAccess(), Stores: f.groups, Hold: f.stallTimeout,
		Supply: supply.Options{Requests: f.fetches, MaxRequests: maxRequests, RateLimit: f.rateLimit, LeftOut: warnLeftOut},
		Memory: f.memory, Cache: f.cache, CacheLimit: f.cacheLimit, Files: imageFiles,
		Fill: f.prefetch == prefetchAll, FillRate: f.prefetchRate, IndexMemory: setMemoryLimit,
		Log: log, Notes: notes.printNote,
	}
	if f.prefetch != prefetchNone {
		o.Profile, o.AutoProfile = f.profile, f.profileWord == profileAuto
	}
	if f.record != "" {
		o.RecordTime, o.RecordOnce = f.recordTime, openfile.IsStream(f.record)
		o.Record = func(ctx context.Context, p *profile.Profile) error { return writeOutput(ctx, f.record, p.Encode()) }
	}
	return o
}
