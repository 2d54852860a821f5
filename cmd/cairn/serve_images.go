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

// How much of the images is fetched before it is read.
const (
	prefetchNone    = "none"
	prefetchProfile = "profile"
	prefetchAll     = "all"
)

// imageFlags say where serve keeps images, and what it fetches before it is read.
type imageFlags struct {
	memory       int64
	prefetch     string
	prefetchRate int64
	profile      profileFlag
	record       string
	recordTime   time.Duration
	stallTimeout time.Duration
}

func defaultImageFlags() imageFlags {
	return imageFlags{
		memory: 256 << 20, prefetch: prefetchProfile, profile: profileFlag{word: profileAuto},
		recordTime: 5 * time.Minute, stallTimeout: 10 * time.Minute,
	}
}

func (f *imageFlags) add(c *cobra.Command) {
	flags := c.Flags()
	if cache := flags.Lookup("cache"); cache != nil {
		cache.Usage = "`directory` that keeps images: what was fetched once is there after a restart"
	}
	if limit := flags.Lookup("cache-limit"); limit != nil {
		limit.Usage = "`size` that all images in --cache may have; 0 is no limit (default: what they have, and half of what is free)"
	}
	flags.Var(amount(&f.memory), "memory", "keep at most that many `bytes` of chunks in memory, of all exports together")
	flags.Var(choice{&f.prefetch, []string{prefetchNone, prefetchProfile, prefetchAll}}, "prefetch",
		"`what` to fetch before it is read: none, profile (what a boot reads, as a profile tells), or all (needs --cache)")
	flags.Var(amount(&f.prefetchRate), "prefetch-rate", "with --prefetch all: fetch at most that many `bytes` a second of what nobody has asked for (default: no limit)")
	flags.Var(&f.profile, "profile", "`file` with a boot profile; auto is NAME.caprf beside NAME.caibx, if there is one; none is none")
	flags.StringVar(&f.record, "record", "", "write what is read, in the order in which it is, into this profile `file`; - is stdout, at the end, with --print-uri=false")
	takeDash(c, "record")
	flags.DurationVar(&f.recordTime, "record-time", f.recordTime, "with --record: for how long after the first read; 0 is no limit")
	flags.DurationVar(&f.stallTimeout, "stall-timeout", f.stallTimeout,
		"how long a read, and the start for its index, waits for stores that do not answer, before it fails; 0 is for ever")
}

// check reports what is wrong with the flags, if anything.
func (f *imageFlags) check(cache, watch string, indexes int) error {
	switch {
	case f.prefetch == prefetchAll && cache == "":
		return errors.New("--prefetch all needs --cache DIRECTORY to put the images in")
	case f.record != "" && (indexes != 1 || watch != ""):
		return errors.New("--record is for one image: name one INDEX")
	case f.recordTime < 0 || f.stallTimeout < 0:
		return errors.New("--record-time and --stall-timeout are not less than nothing")
	}
	return nil
}

// What --profile may be besides a file.
const (
	profileAuto = "auto"
	profileNone = "none"
)

// profileFlag is a flag that takes the location of a profile, or a word.
type profileFlag struct {
	word string // profileAuto, profileNone or ""
	at   locate.Location
}

func (f *profileFlag) String() string { return f.word }
func (f *profileFlag) Type() string   { return "location" }

func (f *profileFlag) Set(text string) error {
	f.word = ""
	if text == profileAuto || text == profileNone {
		f.word, f.at = text, locate.Location{}
		return nil
	}
	err := locationFlag(&f.at).Set(text)
	if f.at.IsStream() {
		err = errors.New("a profile is read for each image, and not from stdin; a file of that name is ./-")
	}
	return err
}

// exports returns what the flags say of the exports.
func (f *serveFlags) exports(log *slog.Logger) export.Options {
	o := export.Options{
		Indexes: f.indexes, Directory: f.watchDir,
		Access: f.releases(), Stores: f.groups, Hold: f.stallTimeout,
		Supply: supply.Options{Requests: f.fetches, RateLimit: f.rateLimit, LeftOut: warnLeftOut},
		Memory: f.memory, Cache: f.cache, CacheLimit: f.cacheLimit,
		Fill: f.prefetch == prefetchAll, FillRate: f.prefetchRate,
		Log: log, Notes: func(n export.Note) { sayOfExport(n, log) },
	}
	if f.prefetch != prefetchNone {
		o.Profile, o.AutoProfile = f.profile.at, f.profile.word == profileAuto
	}
	if f.record != "" {
		o.RecordTime, o.RecordOnce = f.recordTime, openfile.IsStream(f.record)
		o.Record = func(ctx context.Context, p *profile.Profile) error { return writeWhole(ctx, f.record, p.Encode()) }
	}
	return o
}
