package dashboard

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/internal/plaintext"
)

// maxText limits the characters of a foreign text.
const maxText = 1000

// WriteText writes a status as tables for a terminal. It writes only printable characters and line feeds.
func WriteText(w io.Writer, s Status) error {
	n := s.Connections
	fmt.Fprintf(w, "up %s, %s, %d of %d connections, %s/s to clients (%.0f requests/s), %s/s from stores\n\n",
		plaintext.Duration(s.Now.Sub(s.Started)), plaintext.Count(int64(s.Offered), "export"), n.Now, n.Limit, plaintext.Size(int64(s.Rates.Served)), s.Rates.Requests, plaintext.Size(int64(s.Rates.Stored)))
	for _, rows := range [][][]string{exportRows(s), waitRows(s), clientRows(s), seedRows(s), storeRows(s), limitRows(s)} {
		if len(rows) < 2 {
			continue
		}
		if err := plaintext.WriteTable(w, append(rows, nil)); err != nil {
			return err
		}
	}
	return nil
}

func exportRows(s Status) [][]string {
	rows := [][]string{{"EXPORT", "SIZE", "LOCAL", "CLIENTS", "SERVED", "AT ONCE", "FETCHED", "SEEDS", "DELTAS", "WAITED", "FAILED"}}
	for _, e := range s.Exports {
		rows = append(rows, []string{plaintext.Clean(e.Name, maxText), plaintext.Size(e.Size), plaintext.Percent(e.Local, e.Size), fmt.Sprint(e.Clients), plaintext.Size(e.Served),
			plaintext.Percent(e.Hits(), e.Reads), plaintext.Size(e.Fetched), plaintext.Size(e.SeedBytes), plaintext.Size(e.DeltaBytes), plaintext.Duration(time.Duration(e.StallTime * float64(time.Second))), humanize.Comma(e.Failures)})
	}
	return rows
}

func waitRows(s Status) [][]string {
	rows := [][]string{{"WAITING", "FOR", "AT BYTE", "CHUNK", "THE STORE"}}
	for _, e := range s.Exports {
		for _, w := range e.Waiting {
			rows = append(rows, []string{plaintext.Clean(e.Name, maxText), plaintext.Duration(s.Now.Sub(w.Since)), humanize.Comma(w.Offset), plaintext.Clean(w.Chunk, maxText), cmp.Or(plaintext.Clean(w.Error, maxText), "no answer yet")})
		}
	}
	return rows
}

func clientRows(s Status) [][]string {
	rows := [][]string{{"CLIENT", "EXPORT", "SINCE", "REQUESTS", "READ", "PENDING"}}
	for _, c := range s.Clients {
		rows = append(rows, []string{plaintext.Clean(c.Address, maxText), plaintext.Clean(c.Export, maxText), plaintext.Duration(s.Now.Sub(c.Since)), humanize.Comma(c.Requests), plaintext.Size(c.Served), fmt.Sprint(len(c.Pending))})
	}
	return rows
}

func seedRows(s Status) [][]string {
	rows := [][]string{{"SEED", "STATE", "READ", "WRONG"}}
	for _, seed := range s.Seeds {
		rows = append(rows, []string{plaintext.Clean(seed.Name, maxText), describeSeed(seed), plaintext.Size(seed.Bytes), humanize.Comma(seed.Wrong)})
	}
	return rows
}

// describeSeed returns the state of a seed for display, with the error if there is one.
func describeSeed(s Seed) string {
	if s.Error == "" {
		return s.State
	}
	return s.State + ": " + plaintext.Clean(s.Error, maxText)
}

func storeRows(s Status) [][]string {
	rows := [][]string{{"STORE", "STATE", "IN FLIGHT", "RETRIES", "READ"}}
	for _, st := range s.Stores {
		state := "answers"
		if !st.Up {
			state = "unavailable for " + plaintext.Duration(s.Now.Sub(st.Since))
		}
		rows = append(rows, []string{plaintext.Clean(st.Name, maxText), state, fmt.Sprint(st.InFlight), humanize.Comma(st.Retries), plaintext.Size(st.Stored)})
	}
	return rows
}

func limitRows(s Status) [][]string {
	rows := [][]string{{"LIMIT", "USED", "OF"}, {"chunks in memory", plaintext.Size(s.Memory.Bytes), plaintext.Size(s.Memory.Limit)},
		{"replies in flight", plaintext.Size(s.InFlight.Bytes), plaintext.Size(s.InFlight.Limit)}}
	if c := s.Cache; c != nil {
		limit := plaintext.Size(c.Limit)
		if c.Limit < 0 {
			limit = "no limit"
		}
		if c.Damaged > 0 {
			limit += ", " + humanize.Comma(c.Damaged) + " damaged chunks found"
		}
		if !c.Working {
			limit += ", the disk fails"
		}
		rows = append(rows, []string{"images on disk", plaintext.Size(c.Bytes), limit})
	}
	return rows
}
