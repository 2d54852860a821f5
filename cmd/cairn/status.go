package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/daemon"
	"cairn/internal/dashboard"
	"cairn/internal/plaintext"
)

// statusVariable is the environment variable with the default address of status.
const statusVariable = "CAIRN_METRICS"

func newStatus() *cobra.Command {
	var asJSON bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "status [ADDR]",
		Short: "Print the status of a running serve: exports, clients, stores",
		Long: `status prints the exports, clients and stores of a running 'cairn serve --metrics ADDR'. ADDR is the same address
(tcp:HOST:PORT or unix:PATH), or http://HOST:PORT/. Its default is the environment variable CAIRN_METRICS.
The exit status is 4 if no server answers.`,
		Example: `  cairn serve v2.caibx --metrics unix:/run/cairn/metrics.sock
  cairn status unix:/run/cairn/metrics.sock --watch 2s
  cairn status tcp:127.0.0.1:9810 --json`,
		Args: checkArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := parseStatusAddress(args)
			if err != nil {
				return usageError{err}
			}
			return showStatus(c.Context(), c.OutOrStdout(), at, every, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the status as JSON, as in /status.json")
	c.Flags().Var(secondsFlag(&every), "watch", "print the status again every so many `seconds`")
	return c
}

// secondsFlag returns a flag whose value is a time such as 2, 2s or 500ms.
func secondsFlag(into *time.Duration) funcFlag {
	return funcFlag{"seconds", "", func(text string) error {
		d, err := time.ParseDuration(text)
		if err != nil {
			d, err = time.ParseDuration(text + "s")
		}
		if err != nil || d < 100*time.Millisecond || d > 24*time.Hour {
			return fmt.Errorf("%q is not a time of 100ms to 24h (such as 2, 500ms)", text)
		}
		*into = d
		return nil
	}}
}

// parseStatusAddress parses the argument of status, or else the variable.
func parseStatusAddress(args []string) (daemon.Address, error) {
	text := os.Getenv(statusVariable)
	if len(args) == 1 {
		text = args[0]
	}
	if text == "" {
		return daemon.Address{}, fmt.Errorf("want ADDR, the address of serve's --metrics, or %s in the environment", statusVariable)
	}
	if host, is := strings.CutPrefix(text, "http://"); is {
		text = "tcp:" + strings.TrimSuffix(host, "/")
	}
	at, err := daemon.ParseAddress(text)
	if err != nil {
		return daemon.Address{}, fmt.Errorf("%q is not the address of a server: %w, or http://HOST:PORT/", text, err)
	}
	return at, nil
}

// showStatus prints a server's status once, or at intervals until the context ends.
func showStatus(ctx context.Context, w io.Writer, at daemon.Address, every time.Duration, asJSON bool) error {
	for {
		text, err := dashboard.Fetch(ctx, at)
		if err != nil {
			return hintError{fmt.Errorf("asking %v for its status: %w", at, err),
				"ADDR is the address of serve's --metrics; without that flag it has none"}
		}
		s, err := dashboard.ParseStatus(text)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if asJSON {
			b.Write(plaintext.EscapeJSON(text))
		} else {
			if every > 0 {
				b.WriteString("\x1b[H\x1b[2J") // clears the terminal
			}
			if err := dashboard.WriteText(&b, s); err != nil {
				return err
			}
		}
		if _, err := b.WriteTo(w); err != nil {
			return err
		}
		if every == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}
