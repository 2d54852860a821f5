// Command cairn delivers block-device images: it cuts them into chunk stores, assembles them onto partitions, and
// serves them over NBD. This package parses flags, connects the packages that do the work, and prints results and
// messages.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"cairn/internal/confine"
	"cairn/internal/dropin"
	"cairn/internal/openfile"
	"cairn/internal/starter"
)

func main() {
	switch {
	case starter.IsStarter():
		os.Exit(runStarter())
	case confine.IsProbe():
		confine.RunProbe()
		os.Exit(exitDone)
	}
	args := os.Args[1:]
	tool := dropin.ToolOf(os.Args[0])
	if tool == "" && len(args) > 0 && (args[0] == dropin.Casync || args[0] == dropin.Desync) {
		tool, args = args[0], args[1:]
	}
	if tool != "" {
		os.Exit(runDropin(tool, args))
	}
	os.Exit(run(args))
}

// runStarter runs this process as a starter of programs, and returns its exit status.
func runStarter() int {
	if err := starter.Main(); err != nil {
		printError(stderr, err, "")
		return exitFailed
	}
	return exitDone
}

// run runs the program, and returns its exit status.
func run(args []string) int {
	log.SetOutput(io.Discard) // net/http logs there what a broken server sends after its answers, byte by byte
	ctx, interrupt, stop := withSignals(context.Background())
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(openfile.NewWriter(ctx, os.Stdout, func() { interrupt(syscall.SIGPIPE) }))
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	status := exitStatus(ctx, err)
	switch i, _ := errors.AsType[interrupted](context.Cause(ctx)); {
	case i.signal == syscall.SIGPIPE: // a reader such as head may stop early
	case i.signal != 0:
		printError(stderr, i, interruptedHint(c, i.signal, err))
	default:
		printError(stderr, err, cmp.Or(sshHint(args, err), hintFor(c, err, status)))
	}
	return status
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cairn",
		Short: "Deliver images of disks and partitions to many machines",
		Long: `cairn delivers images of disks and partitions to many machines. It cuts an image into chunks, whose cuts depend
on the content, and stores each chunk once in a directory, on a web server or in an S3 bucket. On a machine it
assembles the image onto a partition or file from the data that is already there and downloads the rest, or it
serves the image over NBD and downloads what clients read. Its formats are those of casync and desync.

Exit status:
  0    done
  1    failed
  2    wrong usage
  3    data does not match its digest, or is not signed by a trusted key
  4    not found, denied, or the store cannot be reached
  5    refused, to protect data
  6    damage was found and removed (store verify --remove-damaged)
  129, 130, 131, 143
       interrupted by SIGHUP, SIGINT, SIGQUIT, SIGTERM (serve exits with 0)
  141  stdout was closed by its reader`,
		Args:          requireCommand,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	const width = "120"
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages ", "Flags.FlagUsagesWrapped "+width+" "))
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = checkLocalFlags
	root.AddCommand(newMake(), newDelta(), newAssemble(), newServe(), newStatus(), newPlan(), newVerify(), newCat(), newInfo(), newDiff(),
		newDisk(), newProfile(), newStore(), newRepo(), newKey(), newRelease(), newChannel(), newUpdate(), newVersion(), newDesyncInfo(), newDesyncInspectChunks(), newDesyncListChunks())
	root.AddCommand(newDropin(dropin.Casync), newDropin(dropin.Desync), newDesyncChunk())
	refuseDashes(root)
	return root
}

// checkArgs returns a check of the number of arguments. Its error is wrong usage.
func checkArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if check(c, args) == nil {
			return nil
		}
		given := []string{c.CommandPath()}
		for _, text := range args {
			given = append(given, hideURLs(text))
		}
		return usageError{fmt.Errorf("want '%s', not '%s'", c.UseLine(), strings.Join(given, " "))}
	}
}

// requireCommand refuses arguments of a command that only has subcommands.
func requireCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if likely := c.SuggestionsFor(args[0]); len(likely) > 0 {
		hint = fmt.Sprintf(" (did you mean %q?)", likely[0])
	}
	return usageError{fmt.Errorf("unknown command %q for %q%s", hideURLs(args[0]), c.CommandPath(), hint)}
}
