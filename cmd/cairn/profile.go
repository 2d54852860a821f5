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
	"cairn/internal/plaintext"
	"cairn/store/locate"
)

func newProfile() *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "Merge and show boot profiles, which 'cairn serve --record' writes",
		Long: `A profile lists the chunks that a boot reads, in the order of their first reads. 'cairn serve --record FILE' writes a
profile of the reads of its clients. 'cairn serve' prefetches the chunks of the profile NAME.caprf beside NAME.caibx.
A profile also fits other releases of the image, as far as they have the same chunks.`,
		Args: requireCommand,
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
		Short: "Merge recordings into one profile; name the newest last",
		Long: `merge writes the profile OUT (a file, or - for stdout) of the recordings IN (paths, URLs, or - for stdin). The newest
recording is the last one.`,
		Example: `  cairn serve v2.caibx --record 1.caprf          # boot, stop; again into 2.caprf
  cairn profile merge v2.caprf 1.caprf 2.caprf`,
		Args: checkArgs(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return mergeProfiles(c.Context(), openfile.Standard(args[0], openfile.Stdout), in, least, a)
		},
	}
	a.addFlags(c)
	indexArgs(c, &in, 1)
	c.Flags().IntVar(&least, "min-boots", 1, "keep only chunks that are in at least this `number` of the recordings")
	addCheck(c, func(args []string) error {
		if n := len(args) - 1; least < 1 || least > max(n, 1) {
			return fmt.Errorf("--min-boots %d: there are %d recordings", least, n)
		}
		return nil
	})
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		for _, name := range args[1:] {
			u.addReader("IN "+name, name)
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
		p, err := release.OpenProfile(ctx, a.releaseAccess(), name)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	merged, err := profile.Merge(all, least)
	if err != nil {
		return err
	}
	return writeOutput(ctx, out, merged.Encode())
}

func newProfileShow() *cobra.Command {
	var a access
	var asJSON, list bool
	var file, index locate.Location
	c := &cobra.Command{
		Use:   "show PROFILE",
		Short: "Print a profile (- for stdin)",
		Args:  checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := release.OpenProfile(c.Context(), a.releaseAccess(), file)
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
	a.addFlags(c)
	indexArg(c, &file)
	addJSON(c, &asJSON)
	c.Flags().BoolVar(&list, "chunks", false, "list the chunks: the beginning of the digest, offset, time")
	c.Flags().Var(locationFlag(&index), "index", "also print how much of the profile applies to the image of this `INDEX`")
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		u.addLocation("PROFILE", file)
		u.addLocation("--index", index)
	})
	return c
}

func printProfile(w io.Writer, p *profile.Profile, s profile.Summary, list bool) error {
	rows := [][]string{
		{"recorded from", fmt.Sprintf("an image of %s, index digest %v", plaintext.Size(s.ImageBytes), s.Index)},
		{"recordings", fmt.Sprint(s.Recordings)},
		{"chunks", fmt.Sprintf("%d, %s digests", s.Chunks, s.Algorithm)},
		{"time", plaintext.Duration(time.Duration(s.Seconds * float64(time.Second)))},
	}
	if s.Known != nil {
		rows = append(rows, []string{"in that image", fmt.Sprintf("%d chunks known, %d guessed, %s", *s.Known, *s.Guessed, plaintext.Size(*s.Bytes))})
	}
	if list {
		for _, e := range p.Entries() {
			rows = append(rows, []string{fmt.Sprintf("%x", e.Prefix), fmt.Sprint(int64(e.Block) * profile.Block), fmt.Sprintf("%d ms", e.After)})
		}
	}
	return plaintext.WriteTable(w, rows)
}
