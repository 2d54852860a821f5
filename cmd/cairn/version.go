package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"cairn/internal/buzscan"
	"cairn/internal/lanes"
)

// version is set by the linker; see the Makefile.
var version string

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  checkArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "cairn %s (%s %s/%s, hashing %s, cutting %s)\n",
				versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH, lanes.Active(), buzscan.Active())
			return err
		},
	}
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
