package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/internal/disk"
)

// partition is a line of disk --json.
type partition struct {
	disk.Partition
	Target string `json:"target"` // what to write as TARGET or seed
}

func newDisk() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "disk DISK",
		Short: "The partitions of a disk or disk image, with names to use as TARGET or seed",
		Long: `disk lists the partitions of a GPT disk or disk image. DISK#NAME names one of them, and so do DISK#3 (its
number) and DISK#UUID.`,
		Example: `  cairn disk /dev/sda
  cairn disk disk.img --json`,
		Args: arguments(cobra.ExactArgs(1)),
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
				rows = append(rows, []string{p.Target, size(p.Size), p.Node, p.UUID})
			}
			return table(c.OutOrStdout(), rows)
		},
	}
	localArgs(c, 0, "DISK")
	check(c, func(args []string) error {
		if args[0] == dash {
			return errors.New("DISK -: a table is read at any place of a disk, which stdin does not allow; a file of that name is ./-")
		}
		return nil
	})
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	return c
}

// targetName is how to name the partition as a target: by its name, if no other has it, else by number.
func targetName(path string, p disk.Partition, all []disk.Partition) string {
	name := p.Name
	if found, err := disk.Find(all, name); name == "" || err != nil || found.Number != p.Number {
		name = strconv.Itoa(p.Number)
	}
	return fmt.Sprintf("%s#%s", path, name)
}
