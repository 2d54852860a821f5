package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/store/locate"
)

func newProfileCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Merge and show boot profiles, which 'cairn serve --record' writes",
		Long: `A profile is what a boot reads of an image, in order. 'cairn serve --record FILE' makes one of the reads of its
clients. 'cairn serve' fetches what a profile names before it is asked for: it finds NAME.caprf beside NAME.caibx. A
profile of one release serves the next one too, as far as chunks have not changed.`,
		Args: onlyCommands,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newProfileMerge(), newProfileShow())
	return c
}

func newProfileMerge() *cobra.Command {
	var a access
	least := 1
	var in []locate.Location
	c := &cobra.Command{
		Use:   "merge OUT IN...",
		Short: "Make one profile of several recordings, the newest last",
		Long:  `merge writes one profile of the recordings IN (paths, URLs, or - for stdin) to OUT (a file, or - for stdout).`,
		Example: `  cairn serve v2.caibx --record 1.caprf          # boot, stop; again into 2.caprf
  cairn profile merge v2.caprf 1.caprf 2.caprf`,
		Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return mergeProfiles(c.Context(), openfile.Standard(args[0], stdout), in, least, a)
		},
	}
	a.add(c)
	indexArgs(c, &in, 1, 0)
	c.Flags().IntVar(&least, "min-boots", 1, "keep the chunks that at least so `many` of the recordings have")
	check(c, func(args []string) error {
		if n := len(args) - 1; least < 1 || least > max(n, 1) {
			return fmt.Errorf("--min-boots %d: there are %d recordings", least, n)
		}
		return nil
	})
	checkStdio(c, func(u *users, args []string) {
		for _, name := range args[1:] {
			u.reads("IN "+name, name)
		}
	})
	return c
}

func mergeProfiles(ctx context.Context, out string, in []locate.Location, least int, a access) error {
	if err := checkOutput(out); err != nil {
		return err
	}
	var all []*profile.Profile
	for _, name := range in {
		p, err := release.OpenProfile(ctx, a.releases(), name)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	merged, err := profile.Merge(all, least)
	if err != nil {
		return err
	}
	return writeWhole(ctx, out, merged.Encode())
}

func newProfileShow() *cobra.Command {
	var a access
	var asJSON, list bool
	var file []locate.Location // one
	var index locate.Location
	c := &cobra.Command{
		Use:   "show PROFILE",
		Short: "Say what is in a profile (- for stdin)",
		Args:  arguments(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := release.OpenProfile(c.Context(), a.releases(), file[0])
			if err != nil {
				return err
			}
			var x *blob.Index
			if !index.IsZero() {
				if x, err = readIndex(c.Context(), index, a); err != nil {
					return err
				}
			}
			shown := p.Summarize(x)
			if asJSON {
				return writeJSON(c.OutOrStdout(), shown)
			}
			return printProfile(c.OutOrStdout(), p, shown, list)
		},
	}
	a.add(c)
	indexArgs(c, &file, 0, 1)
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object on stdout")
	c.Flags().BoolVar(&list, "chunks", false, "list the chunks: the digest's beginning, the offset, the time")
	c.Flags().Var(locationFlag(&index), "index", "also say what the profile means for the image of this `INDEX`")
	checkStdio(c, func(u *users, _ []string) {
		u.readsAt("PROFILE", file[0])
		u.readsAt("--index", index)
	})
	return c
}

func printProfile(w io.Writer, p *profile.Profile, s profile.Summary, list bool) error {
	rows := [][]string{
		{"recorded from", fmt.Sprintf("an image of %s, index digest %v", size(s.ImageBytes), s.Index)},
		{"recordings", fmt.Sprint(s.Recordings)},
		{"chunks", fmt.Sprintf("%d, %s digests", s.Chunks, s.Algorithm)},
		{"time", rounded(time.Duration(s.Seconds * float64(time.Second)))},
	}
	if s.Known != nil {
		rows = append(rows, []string{"in that image", fmt.Sprintf("%d chunks known, %d guessed, %s", *s.Known, *s.Guessed, size(*s.Bytes))})
	}
	if list {
		for _, e := range p.Entries() {
			rows = append(rows, []string{fmt.Sprintf("%x", e.Prefix), fmt.Sprint(int64(e.Block) * profile.Block), fmt.Sprintf("%d ms", e.After)})
		}
	}
	return table(w, rows)
}
