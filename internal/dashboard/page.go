package dashboard

import (
	"bytes"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"cairn/internal/plaintext"
)

// How much the page shows; /status.json has all.
const (
	maxShown   = 64  // exports, clients, reads that wait
	maxName    = 200 // characters of a name
	columns    = 96  // cells in a row of a map
	cellWidth  = 10
	cellHeight = 10
)

// page is what the template shows of a Status: the first of its exports, of their reads that wait, and of its clients.
type page struct {
	Status
	Figures     []figure
	Waits       []exportWait
	Rooms       []roomRow
	MoreExports int
	MoreClients int
}

type figure struct{ ID, Name, Value, Note string }

type exportWait struct {
	Export string
	Wait
}

type roomRow struct {
	Name, Used, Limit, Note string
	Share                   int // of 100
}

func render(s Status) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"clean": clean, "short": short, "size": size, "comma": humanize.Comma, "share": plaintext.Percent, "count": countRequests,
		"draw": draw, "since": func(t time.Time) string { return age(s.Now.Sub(t)) },
		"seconds": func(n float64) string { return age(time.Duration(n * float64(time.Second))) },
	}).Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, newPage(s))
	return b.Bytes(), err
}

func newPage(s Status) page {
	p := page{Status: s, Figures: figures(s), Rooms: rooms(s)}
	p.Exports, p.Clients = s.Exports[:min(len(s.Exports), maxShown)], s.Clients[:min(len(s.Clients), maxShown)]
	p.MoreExports, p.MoreClients = len(s.Exports)-len(p.Exports), len(s.Clients)-len(p.Clients)
	for _, e := range p.Exports {
		for _, w := range e.Waiting[:min(len(e.Waiting), maxShown-len(p.Waits))] {
			p.Waits = append(p.Waits, exportWait{e.Name, w})
		}
	}
	return p
}

func figures(s Status) []figure {
	var whole, local, reads, hits, waits int64
	var longest time.Duration
	for _, e := range s.Exports {
		whole, local = whole+e.Size, local+e.Local
		reads, hits = reads+e.Reads, hits+e.Hits()
		waits += int64(len(e.Waiting))
		if len(e.Waiting) > 0 {
			longest = max(longest, s.Now.Sub(e.Waiting[0].Since))
		}
	}
	waiting := "nobody waits"
	if waits > 0 {
		waiting = "the longest for " + age(longest)
	}
	return []figure{
		{"local", "Local", plaintext.Percent(local, whole), size(local) + " of " + size(whole)},
		{"hits", "Answered at once", plaintext.Percent(hits, reads), "of " + humanize.Comma(reads) + " reads"},
		{"served", "To clients", size(int64(s.Rates.Served)) + "/s", fmt.Sprintf("%.0f requests/s", s.Rates.Requests)},
		{"fetched", "From stores", size(int64(s.Rates.Stored)) + "/s", "as stored"},
		{"waiting", "Reads waiting", humanize.Comma(waits), waiting},
	}
}

// drawing is the map of an export.
type drawing struct {
	Width, Height int
	Shapes        []shape
	Grid          string
	Waits         string // a path around the cells of chunks that reads wait for
}

// shape is all cells of a level.
type shape struct{ Class, Path string }

// draw draws the map of an export, unless it is empty.
func draw(e Export) *drawing {
	if e.Map == "" {
		return nil
	}
	height := (len(e.Map) + columns - 1) / columns * cellHeight
	return &drawing{columns * cellWidth, height, shapes(e.Map), grid(height), around(e)}
}

// shapes are the cells of each level as a path, neighbours as one.
func shapes(cells string) (all []shape) {
	for _, level := range levels {
		var path strings.Builder
		for i := 0; i < len(cells); i++ {
			n := run(cells, i, byte(level))
			if n == 0 {
				continue
			}
			path.WriteString(box(i, n))
			i += n - 1
		}
		if path.Len() > 0 {
			all = append(all, shape{"c" + string(level), path.String()})
		}
	}
	return all
}

// run is how many cells from i on, in one row, have a level.
func run(cells string, i int, level byte) (n int) {
	for i+n < len(cells) && cells[i+n] == level && (n == 0 || (i+n)%columns != 0) {
		n++
	}
	return n
}

func box(i, n int) string {
	return fmt.Sprintf("M%d %dh%dv%dh-%dz", i%columns*cellWidth, i/columns*cellHeight, n*cellWidth, cellHeight, n*cellWidth)
}

// grid is the lines between cells.
func grid(height int) string {
	var path strings.Builder
	for x := cellWidth; x < columns*cellWidth; x += cellWidth {
		fmt.Fprintf(&path, "M%d 0v%d", x, height)
	}
	for y := cellHeight; y < height; y += cellHeight {
		fmt.Fprintf(&path, "M0 %dh%d", y, columns*cellWidth)
	}
	return path.String()
}

// around marks the cells of chunks that reads of an export with a map wait for.
func around(e Export) string {
	var path strings.Builder
	per := (e.Size + int64(len(e.Map)) - 1) / int64(len(e.Map))
	var marked []int
	for _, w := range e.Waiting[:min(len(e.Waiting), maxShown)] {
		for i := int(w.Offset / per); int64(i)*per < w.Offset+w.Size && i < len(e.Map); i++ {
			marked = append(marked, i)
		}
	}
	slices.Sort(marked)
	for _, i := range slices.Compact(marked) {
		path.WriteString(box(i, 1))
	}
	return path.String()
}

// countRequests counts the requests to a store, or those of them that failed.
func countRequests(all []Results, failed bool) (n int64) {
	for _, r := range all {
		if !failed || r.Result != "ok" {
			n += r.Count
		}
	}
	return n
}

func rooms(s Status) []roomRow {
	all := []roomRow{
		newRoom("Chunks in memory", s.Memory.Bytes, s.Memory.Limit, ""),
		newRoom("Replies on their way", s.InFlight.Bytes, s.InFlight.Limit, ""),
	}
	if c := s.Cache; c != nil {
		note := "evicted " + size(c.Evicted)
		if !c.Working {
			note = "the disk fails; " + note
		}
		all = append(all, newRoom("Images on disk", c.Bytes, c.Limit, note))
	}
	n := s.Connections
	return append(all, roomRow{"Connections", fmt.Sprint(n.Now), fmt.Sprint(n.Limit), humanize.Comma(n.Refused) + " refused", hundredth(int64(n.Now), int64(n.Limit))})
}

func newRoom(name string, used, limit int64, note string) roomRow {
	text := size(limit)
	if limit < 0 {
		text = "no limit"
	}
	return roomRow{name, size(used), text, note, hundredth(used, limit)}
}

func hundredth(part, whole int64) int {
	if whole <= 0 {
		return 0
	}
	return int(min(100, 100*float64(part)/float64(whole)))
}

// short is the beginning of a digest.
func short(digest string) string { return clean(digest[:min(len(digest), 12)]) }

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// age is a duration for people.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// clean is what can be shown of a text.
func clean(text string) string { return plaintext.Clean(text, maxName) }
