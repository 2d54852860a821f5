package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/internal/daemon"
	"cairn/internal/dashboard"
	"cairn/internal/plaintext"
	"cairn/store"
)

// statusVariable is where status looks for an address that it is not given.
const statusVariable = "CAIRN_METRICS"

const (
	statusTimeout = 10 * time.Second
	largestStatus = 64 << 20
)

func newStatus() *cobra.Command {
	var asJSON bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "status [ADDR]",
		Short: "What a running serve does: exports, clients, what they wait for, stores",
		Long: `status asks a 'cairn serve --metrics ADDR' how things are. ADDR is what serve was given, tcp:HOST:PORT or
unix:PATH, or http://HOST:PORT/; without it, it is what the environment's variable CAIRN_METRICS says.
The exit status is 4 when no server answers.`,
		Example: `  cairn serve v2.caibx --metrics unix:/run/cairn/metrics.sock
  cairn status unix:/run/cairn/metrics.sock --watch 2s
  cairn status tcp:127.0.0.1:9810 --json`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			at, err := statusAddress(args)
			if err != nil {
				return usageError{c, err}
			}
			return showStatus(c.Context(), c.OutOrStdout(), at, every, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print it as JSON, as /status.json has it")
	c.Flags().Var(secondsFlag{&every}, "watch", "ask again after so many `seconds`, again and again")
	return c
}

// secondsFlag is a flag that takes a time, 2 or 2s or 500ms.
type secondsFlag struct{ value *time.Duration }

func (f secondsFlag) String() string { return "" }
func (f secondsFlag) Type() string   { return "seconds" }

func (f secondsFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		d, err = time.ParseDuration(text + "s")
	}
	if err != nil || d < 100*time.Millisecond || d > 24*time.Hour {
		return fmt.Errorf("%q is not a time of 100ms to 24h (such as 2, 500ms)", text)
	}
	*f.value = d
	return nil
}

func statusAddress(args []string) (daemon.Address, error) {
	text := os.Getenv(statusVariable)
	if len(args) == 1 {
		text = args[0]
	}
	if text == "" {
		return daemon.Address{}, fmt.Errorf("want an ADDR: what serve was given as --metrics, or %s in the environment", statusVariable)
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

// showStatus prints a server's status, once or every so often until the context ends.
func showStatus(ctx context.Context, w io.Writer, at daemon.Address, every time.Duration, asJSON bool) error {
	for {
		text, err := askStatus(ctx, at)
		if err != nil {
			return hintError{fmt.Errorf("asking %v for its status: %w", at, err),
				"the address is what serve was given as --metrics; without that it has none"}
		}
		if err := printStatus(w, text, asJSON, every > 0); err != nil {
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

// askStatus gets a server's /status.json.
func askStatus(ctx context.Context, at daemon.Address) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, at.Network, at.At)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	host := "localhost"
	if at.Network == "tcp" {
		host = at.At
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/status.json", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(r)
	if err != nil { // without net/http's words about the URL, which is none for a unix socket
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, cmp.Or(errors.Unwrap(err), err))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: it answers %s, which is no status of cairn serve", store.ErrUnavailable, answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, largestStatus+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	case len(text) > largestStatus:
		return nil, fmt.Errorf("its answer has more than %s", size(largestStatus))
	}
	return text, nil
}

func printStatus(w io.Writer, text []byte, asJSON, again bool) error {
	var s dashboard.Status
	if err := json.Unmarshal(text, &s); err != nil || s.Started.IsZero() {
		return fmt.Errorf("%w: the answer is not cairn serve's", store.ErrUnavailable)
	}
	if asJSON {
		_, err := w.Write(text)
		return err
	}
	var b bytes.Buffer
	if again {
		b.WriteString("\x1b[H\x1b[2J")
	}
	if err := writeStatus(&b, s); err != nil {
		return err
	}
	_, err := b.WriteTo(w)
	return err
}

func writeStatus(w io.Writer, s dashboard.Status) error {
	n := s.Connections
	fmt.Fprintf(w, "up %s, %d exports, %d of %d connections, %s/s to clients (%.0f requests/s), %s/s from stores\n\n",
		rounded(s.Now.Sub(s.Started)), s.Offered, n.Now, n.Limit, size(int64(s.Rates.Served)), s.Rates.Requests, size(int64(s.Rates.Stored)))
	for _, rows := range [][][]string{exportRows(s), waitRows(s), clientRows(s), storeRows(s), roomRows(s)} {
		if len(rows) < 2 {
			continue
		}
		if err := table(w, append(rows, nil)); err != nil {
			return err
		}
	}
	return nil
}

func exportRows(s dashboard.Status) [][]string {
	rows := [][]string{{"EXPORT", "SIZE", "LOCAL", "CLIENTS", "SERVED", "AT ONCE", "FETCHED", "WAITED", "FAILED"}}
	for _, e := range s.Exports {
		rows = append(rows, []string{printable(e.Name), size(e.Size), plaintext.Percent(e.Local, e.Size), fmt.Sprint(e.Clients), size(e.Served),
			plaintext.Percent(e.Hits(), e.Reads), size(e.Fetched), rounded(time.Duration(e.StallTime * float64(time.Second))), humanize.Comma(e.Failures)})
	}
	return rows
}

func waitRows(s dashboard.Status) [][]string {
	rows := [][]string{{"WAITING", "FOR", "AT BYTE", "CHUNK", "THE STORE"}}
	for _, e := range s.Exports {
		for _, w := range e.Waiting {
			rows = append(rows, []string{printable(e.Name), rounded(s.Now.Sub(w.Since)), humanize.Comma(w.Offset), printable(w.Chunk), cmp.Or(printable(w.Error), "no answer yet")})
		}
	}
	return rows
}

func clientRows(s dashboard.Status) [][]string {
	rows := [][]string{{"CLIENT", "EXPORT", "SINCE", "REQUESTS", "READ", "PENDING"}}
	for _, c := range s.Clients {
		rows = append(rows, []string{printable(c.Address), printable(c.Export), rounded(s.Now.Sub(c.Since)), humanize.Comma(c.Requests), size(c.Served), fmt.Sprint(len(c.Pending))})
	}
	return rows
}

func storeRows(s dashboard.Status) [][]string {
	rows := [][]string{{"STORE", "STATE", "UNDER WAY", "ASKED AGAIN", "CAME"}}
	for _, st := range s.Stores {
		state := "answers"
		if !st.Up {
			state = "away for " + rounded(s.Now.Sub(st.Since))
		}
		rows = append(rows, []string{printable(st.Name), state, fmt.Sprint(st.InFlight), humanize.Comma(st.Retries), size(st.Stored)})
	}
	return rows
}

func roomRows(s dashboard.Status) [][]string {
	rows := [][]string{{"LIMIT", "TAKEN", "OF"}, {"chunks in memory", size(s.Memory.Bytes), size(s.Memory.Limit)},
		{"replies on their way", size(s.InFlight.Bytes), size(s.InFlight.Limit)}}
	if c := s.Cache; c != nil {
		limit := size(c.Limit)
		if c.Limit < 0 {
			limit = "no limit"
		}
		if !c.Working {
			limit += ", the disk fails"
		}
		rows = append(rows, []string{"images on disk", size(c.Bytes), limit})
	}
	return rows
}

// printable returns what a terminal may be sent of a text that comes from elsewhere.
func printable(text string) string { return plaintext.Clean(text, 1000) }
