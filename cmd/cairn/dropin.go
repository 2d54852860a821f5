package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cairn/internal/dropin"
)

// debugVariable is the environment variable that makes casync and desync print how they were translated.
const debugVariable = "CAIRN_DEBUG"

// newDropin returns the command that stands for another tool in the help. run handles it before the commands are parsed.
func newDropin(tool string) *cobra.Command {
	return &cobra.Command{
		Use:   tool + " COMMAND...",
		Short: "Do what a command line of " + tool + " asks for",
		Long: fmt.Sprintf(`cairn %s does what a command line of %s asks for. A link with the name %s to cairn does the same:

  ln -s cairn /usr/local/bin/%s

'cairn %s --help' lists the commands and flags, and what becomes of them. %s=1 in the environment prints
the flags that are ignored, and the command line of cairn. Every failure has the exit status 1.`, tool, tool, tool, tool, tool, debugVariable),
		DisableFlagParsing: true,
	}
}

// runDropin runs cairn for the arguments of another tool, and returns the exit status. It is 0 or 1, as the tool's.
func runDropin(tool string, args []string) int {
	call, err := dropin.Translate(tool, args, versionText())
	if err != nil {
		printError(stderr, fmt.Errorf("%s: %w", tool, err), "")
		return exitFailed
	}
	if call.Text != "" {
		if _, err := os.Stdout.WriteString(call.Text); err != nil {
			return exitFailed
		}
		return exitDone
	}
	if call.Verbose || os.Getenv(debugVariable) == "1" {
		for _, note := range call.Notes {
			logf("debug: %s", note)
		}
		logf("debug: cairn %s", showArgs(call.Args))
	}
	if run(call.Args) != exitDone {
		return exitFailed
	}
	return exitDone
}

// showArgs returns arguments as a shell takes them, without the secrets of URLs.
func showArgs(args []string) string {
	shown := make([]string, len(args))
	for i, arg := range args {
		arg = hideURLs(arg)
		if strings.ContainsAny(arg, " \t\n'\"\\|&;()<>*?[]{}$`#~!") || arg == "" {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		shown[i] = arg
	}
	return strings.Join(shown, " ")
}
