package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"cairn/internal/plaintext"
)

// progress shows the progress of a phase of a job: a bar on a terminal, events with --progress=json, or else a line at
// the start. The job itself prints its result.
type progress struct {
	phase string
	total int64 // bytes; negative if unknown
	begun time.Time
	show  func(done int64, note string, detail any)
	end   func()
}

// The values of --progress.
const (
	progressAuto = "auto"
	progressBar  = "bar"
	progressJSON = "json"
	progressNone = "none"
)

// newProgress begins a phase.
func newProgress(mode, phase string, total int64) *progress {
	p := &progress{phase: phase, total: total, begun: time.Now(), show: func(int64, string, any) {}, end: func() {}}
	switch {
	case mode == progressJSON:
		p.showEvents(os.Stderr)
	case mode == progressBar || mode == progressAuto && term.IsTerminal(int(os.Stderr.Fd())):
		p.showBar(os.Stderr)
	case mode == progressAuto && total >= 0:
		logf("%s (%s)", phase, plaintext.Size(total))
	case mode == progressAuto:
		logf("%s", phase)
	}
	return p
}

func (p *progress) elapsed() time.Duration { return time.Since(p.begun) }

func (p *progress) showBar(w io.Writer) {
	phase := plaintext.Line(p.phase)
	bar := progressbar.NewOptions64(p.total, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true),
		progressbar.OptionSetDescription(phase), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSetPredictTime(true), progressbar.OptionFullWidth(), progressbar.OptionUseIECUnits(true))
	p.show = func(done int64, note string, _ any) {
		if note != "" {
			bar.Describe(phase + " (" + note + ")")
		}
		bar.Set64(done)
	}
	p.end = func() { bar.Clear() }
}

// event is a line of --progress=json.
type event struct {
	Event   string  `json:"event"` // start, progress or end
	Phase   string  `json:"phase"`
	Done    int64   `json:"done_bytes"`
	Total   int64   `json:"total_bytes,omitempty"`
	Seconds float64 `json:"seconds"`
	Detail  any     `json:"detail,omitempty"`
}

func (p *progress) showEvents(w io.Writer) {
	const pause = 500 * time.Millisecond
	var last time.Time
	send := func(kind string, done int64, detail any) {
		line, err := json.Marshal(event{kind, p.phase, done, max(p.total, 0), p.elapsed().Seconds(), detail})
		if err == nil {
			fmt.Fprintf(w, "%s\n", plaintext.EscapeJSON(line))
		}
	}
	send("start", 0, nil)
	var lastDone int64
	p.show = func(done int64, _ string, detail any) {
		lastDone = done
		if time.Since(last) >= pause {
			last = time.Now()
			send("progress", done, detail)
		}
	}
	p.end = func() { send("end", lastDone, nil) }
}
