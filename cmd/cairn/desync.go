package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/internal/dropin/report"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
)

// The commands in this file print what the commands of desync with their names print. They are hidden: they exist for
// programs that run cairn under the name desync.

// lookups is how many chunks are looked up in a store at once.
const lookups = 32

// addDesyncStats adds the flag that prints what desync prints for --print-stats.
func addDesyncStats(c *cobra.Command, on *bool) {
	const name = "desync-stats"
	c.Flags().BoolVar(on, name, false, "print the statistics of desync's --print-stats")
	c.Flags().Lookup(name).Hidden = true
}

type desyncInfoFlags struct {
	stores
	index      locate.Location
	seeds      []locate.Location
	chunksInfo string
	format     string
}

func newDesyncInfo() *cobra.Command {
	f := desyncInfoFlags{format: "json"}
	c := &cobra.Command{
		Use:    "desync-info INDEX",
		Short:  "Print what 'desync info' prints",
		Hidden: true,
		Args:   checkArgs(cobra.ExactArgs(1)),
		RunE:   func(c *cobra.Command, _ []string) error { return runDesyncInfo(c.Context(), c.OutOrStdout(), f) },
	}
	f.stores.addFlags(c)
	f.addPatience(c)
	indexArg(c, &f.index)
	c.Flags().Var(locationsFlag(&f.seeds), "seed", "`index` of a seed; repeatable")
	c.Flags().StringVar(&f.chunksInfo, "chunks-info", "", "`file` with the output of desync-inspect-chunks for the store")
	c.Flags().VarP(choiceFlag(&f.format, "json", "plain"), "format", "f", "`format` of the output: json or plain")
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		u.addLocation("INDEX", f.index)
		for _, seed := range f.seeds {
			u.addLocation("--seed", seed)
		}
	})
	return c
}

func runDesyncInfo(ctx context.Context, stdout io.Writer, f desyncInfoFlags) error {
	x, err := readAnyIndex(ctx, f.index, f.access)
	if err != nil {
		return err
	}
	from := report.Sources{Workers: lookups}
	for _, at := range f.seeds {
		seed, err := readAnyIndex(ctx, at, f.access)
		if err != nil {
			return err
		}
		from.Seeds = append(from.Seeds, seed)
	}
	if f.chunksInfo != "" {
		if from.Chunks, err = readChunkInfos(f.chunksInfo); err != nil {
			return err
		}
	}
	lookIn := func(r store.Reader) *store.Inventory {
		return store.TakeInventory(ctx, r, store.InventoryOptions{Chunks: int64(x.Len())})
	}
	if f.cache != "" { // a directory that does not exist yet is an empty cache
		cache := lookIn(local.At(f.cache, local.Options{}))
		defer cache.Close()
		from.Caches = append(from.Caches, cache)
	}
	for _, at := range slices.Concat(f.groups...) {
		r, err := f.openReader(at, 0)
		if err != nil {
			return err
		}
		defer store.Close(r)
		held := lookIn(r)
		defer held.Close()
		from.Stores = append(from.Stores, held)
	}
	info, err := report.NewInfo(ctx, x, from)
	if err != nil {
		return fmt.Errorf("counting the chunks of %s: %w", f.index, err)
	}
	if f.format == "json" {
		return writeJSON(stdout, info)
	}
	return info.WriteText(stdout)
}

func readChunkInfos(path string) (infos []report.ChunkInfo, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &infos)
	}
	if err != nil {
		return nil, fmt.Errorf("reading --chunks-info %s: %w", path, err)
	}
	return infos, nil
}

func newDesyncInspectChunks() *cobra.Command {
	var f stores
	var index locate.Location
	c := &cobra.Command{
		Use:    "desync-inspect-chunks INDEX [OUTPUT]",
		Short:  "Print what 'desync inspect-chunks' prints",
		Hidden: true,
		Args:   checkArgs(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				return inspectChunks(c.Context(), c.OutOrStdout(), f, index)
			}
			var list bytes.Buffer
			if err := inspectChunks(c.Context(), &list, f, index); err != nil {
				return err
			}
			return writeOutput(c.Context(), args[1], list.Bytes())
		},
	}
	f.addFlags(c)
	f.addPatience(c)
	indexArg(c, &index)
	localArg(c, 1, "OUTPUT")
	checkStdioUse(c, func(u *stdioUsers, _ []string) { u.addLocation("INDEX", index) })
	return c
}

func inspectChunks(ctx context.Context, out io.Writer, f stores, index locate.Location) error {
	x, err := readAnyIndex(ctx, index, f.access)
	if err != nil {
		return err
	}
	var from report.Stater
	for _, group := range f.groups {
		if from != nil {
			return usageError{errors.New("--store: the sizes are those in one store")}
		}
		at, err := onlyStore("--store", group)
		if err != nil {
			return usageError{err}
		}
		r, err := f.openReader(at, 0)
		if err != nil {
			return err
		}
		defer store.Close(r)
		from = store.NewChunks(r, x.Algorithm())
	}
	infos, err := report.InspectChunks(ctx, x, from, lookups)
	if err != nil {
		return fmt.Errorf("asking for the chunks of %s: %w", index, err)
	}
	return writeJSON(out, infos)
}

func newDesyncListChunks() *cobra.Command {
	var f access
	var index locate.Location
	c := &cobra.Command{
		Use:    "desync-list-chunks INDEX",
		Short:  "Print what 'desync list-chunks' prints",
		Hidden: true,
		Args:   checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			x, err := readAnyIndex(c.Context(), index, f)
			if err != nil {
				return err
			}
			return listChunks(c.OutOrStdout(), x)
		},
	}
	f.addFlags(c)
	indexArg(c, &index)
	checkStdioUse(c, func(u *stdioUsers, _ []string) { u.addLocation("INDEX", index) })
	return c
}

// listChunks writes the digests of all chunks in the order of the image.
func listChunks(out io.Writer, x *blob.Index) error {
	w := bufio.NewWriter(out)
	for _, c := range x.All() {
		if _, err := fmt.Fprintln(w, c.Digest); err != nil {
			return err
		}
	}
	return w.Flush()
}
