package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/internal/disk"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
)

// partition is an element of the output of disk --json.
type partition struct {
	disk.Partition
	Target string `json:"target"` // its name as TARGET or seed
}

func newDisk() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "disk DISK",
		Short: "List the partitions of a disk, with their names as TARGET or seed",
		Long: `disk lists the partitions of a disk or disk image with a GPT. As a TARGET or seed, a partition is DISK#NAME, DISK#3
(its number) or DISK#UUID.`,
		Example: `  cairn disk /dev/sda
  cairn disk disk.img --json`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			found, err := disk.Partitions(args[0])
			if err != nil {
				return err
			}
			parts := []partition{}
			for _, p := range found {
				parts = append(parts, partition{p, targetName(args[0], p, found)})
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), map[string]any{"disk": args[0], "partitions": parts})
			}
			rows := [][]string{{"TARGET", "SIZE", "NODE", "UUID"}}
			for _, p := range parts {
				rows = append(rows, []string{p.Target, plaintext.Size(p.Size), p.Node, p.UUID})
			}
			return plaintext.WriteTable(c.OutOrStdout(), rows)
		},
	}
	localArg(c, 0, "DISK")
	addCheck(c, func(args []string) error {
		if args[0] == openfile.Dash {
			return errors.New("DISK -: a table is read at any place of a disk, which stdin does not allow; a file of that name is ./-")
		}
		return nil
	})
	addJSON(c, &asJSON)
	return c
}

// targetName returns DISK#NAME for a partition, or DISK#NUMBER if its name is empty or ambiguous.
func targetName(path string, p disk.Partition, all []disk.Partition) string {
	name := p.Name
	if found, err := disk.Find(all, name); name == "" || err != nil || found.Number != p.Number {
		name = strconv.Itoa(p.Number)
	}
	return fmt.Sprintf("%s#%s", path, name)
}
