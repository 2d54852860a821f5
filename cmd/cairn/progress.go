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

// progress shows the progress of a phase of a job: a bar on a terminal, events with --progress=json, lines with
// --progress=percent, or else a line at the start. The job itself prints its result.
type progress struct {
	phase string
	total int64 // bytes; negative if unknown
	begun time.Time
	show  func(done int64, note string, detail any)
	end   func()
}

// The values of --progress.
const (
	progressAuto    = "auto"
	progressBar     = "bar"
	progressJSON    = "json"
	progressPercent = "percent"
	progressNone    = "none"
)

// newProgress begins a phase. title is the name of the phase in desync's lines of progress.
func newProgress(mode, phase, title string, total int64) *progress {
	p := &progress{phase: phase, total: total, begun: time.Now(), show: func(int64, string, any) {}, end: func() {}}
	switch {
	case mode == progressJSON:
		p.showEvents(os.Stderr)
	case mode == progressPercent:
		if total >= 0 { // else there is no percentage
			p.showPercent(stderr, title)
		}
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

// pause is the least time between two events or lines, as with desync.
const pause = 500 * time.Millisecond

func (p *progress) showEvents(w io.Writer) {
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

// showPercent writes the lines that desync writes for programs: the percentage and the remaining time, and at the end
// the time taken.
func (p *progress) showPercent(w io.Writer, title string) {
	var last time.Time
	var lastDone int64
	send := func(end string) {
		percent := 0.0
		if p.total > 0 {
			percent = 100 * float64(lastDone) / float64(p.total)
		}
		fmt.Fprintf(w, "%s %6.2f%%%s\n", title, percent, end)
	}
	send("")
	p.show = func(done int64, _ string, _ any) {
		lastDone = done
		if time.Since(last) >= pause {
			last = time.Now()
			send(remainingTime(done, p.total, p.elapsed()))
		}
	}
	p.end = func() {
		if p.total == 0 {
			p.total, lastDone = 1, 1 // all of nothing is done
		}
		send(" " + p.elapsed().Truncate(time.Second).String())
	}
}

// remainingTime returns the estimated remaining time in desync's form, or "" if it is unknown or less than a second.
func remainingTime(done, total int64, elapsed time.Duration) string {
	if done <= 0 {
		return ""
	}
	left := time.Duration(float64(elapsed) * float64(total-done) / float64(done)).Truncate(time.Second)
	if left <= 0 {
		return ""
	}
	text := " "
	if left > 24*time.Hour {
		text += fmt.Sprintf("%dd", left/(24*time.Hour))
		left %= 24 * time.Hour
	}
	if left > time.Hour {
		text += fmt.Sprintf("%dh", left/time.Hour)
		left %= time.Hour
	}
	return text + fmt.Sprintf("%02dm%02ds", left/time.Minute, left%time.Minute/time.Second)
}
