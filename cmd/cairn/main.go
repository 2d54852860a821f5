// Command cairn delivers block-device images: it makes chunk stores of them, assembles them onto
// partitions from what is already there, and serves them over NBD. This package is flags, wiring and words;
// the work is done by the packages it joins.
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

	"cairn/internal/openfile"
)

func main() { os.Exit(run(os.Args[1:])) }

// run is the program, and returns its exit status.
func run(args []string) int {
	log.SetOutput(io.Discard) // net/http tells there what a broken server sends beyond its answers, byte by byte
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
	case i.signal == syscall.SIGPIPE: // a reader that has enough, such as head, is no mistake
	case i.signal != 0:
		complain(stderr, i, interruptedHint(c, i.signal, err))
	default:
		complain(stderr, err, cmp.Or(sshHint(args, err), hintFor(err, status)))
	}
	return status
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cairn",
		Short: "Deliver block-device images: content-addressed, seeded by what is already there, or live over NBD",
		Long: `cairn cuts block-device images into content-defined chunks, keeps each chunk once in a plain store that
any web server can serve, and assembles images onto partitions from what is already on the machine, or
serves them live over NBD. Its formats are casync's and desync's.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 data is not what its digest says, 4 not found or store
unreachable, 5 refused to protect data, 6 mended: damage was removed from a store as asked, 129, 130, 131
and 143 interrupted by SIGHUP, SIGINT, SIGQUIT and SIGTERM (serve ends with 0), 141 stdout is not read any
more.`,
		Args:          onlyCommands,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	const width = "120"
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages ", "Flags.FlagUsagesWrapped "+width+" "))
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = localFlags
	root.AddCommand(newMake(), newAssemble(), newServe(), newStatus(), newPlan(), newVerify(), newCat(), newInfo(), newDiff(), newDisk(), newProfileCommand(), newStore(), newVersion())
	refuseDashes(root)
	return root
}

// arguments checks the number of arguments, as a mistake in usage.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if check(c, args) != nil {
			got := make([]string, len(args))
			for i, text := range args {
				got[i] = hideURLs(text)
			}
			return usageError{c, fmt.Errorf("want '%s', not '%s'", c.UseLine(), strings.Join(append([]string{c.CommandPath()}, got...), " "))}
		}
		return nil
	}
}

// onlyCommands are the arguments of a command that is nothing without one of its own.
func onlyCommands(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if likely := c.SuggestionsFor(args[0]); len(likely) > 0 {
		hint = fmt.Sprintf(" (did you mean %q?)", likely[0])
	}
	return usageError{c, fmt.Errorf("unknown command %q for %q%s", hideURLs(args[0]), c.CommandPath(), hint)}
}
