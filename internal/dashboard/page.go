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

// Limits of the page; /status.json is complete.
const (
	maxShown   = 64  // exports, clients, seeds, waiting reads
	maxName    = 200 // characters of a name
	columns    = 96  // cells in a row of a map
	cellWidth  = 10
	cellHeight = 10
)

// page is the data of the template: a Status with at most maxShown exports and clients, and the
// waiting reads of the shown exports.
type page struct {
	Status
	Figures     []figure
	Waits       []exportWait
	UsageRows   []usageRow
	MoreExports int
	MoreClients int
	MoreSeeds   int
}

type figure struct{ ID, Name, Value, Note string }

type exportWait struct {
	Export string
	Wait
}

type usageRow struct {
	Name, Used, Limit, Note string
	Share                   int // percent
}

func renderPage(s Status) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"clean": cleanText, "short": shortDigest, "size": plaintext.Size, "comma": humanize.Comma, "share": plaintext.Percent, "count": countRequests,
		"draw": newDrawing, "describe": describeSeed, "since": func(t time.Time) string { return formatAge(s.Now.Sub(t)) },
		"seconds": func(n float64) string { return formatAge(time.Duration(n * float64(time.Second))) },
	}).Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, newPage(s))
	return b.Bytes(), err
}

func newPage(s Status) page {
	p := page{Status: s, Figures: newFigures(s), UsageRows: newUsageRows(s)}
	p.Exports, p.Clients = s.Exports[:min(len(s.Exports), maxShown)], s.Clients[:min(len(s.Clients), maxShown)]
	p.MoreExports, p.MoreClients = len(s.Exports)-len(p.Exports), len(s.Clients)-len(p.Clients)
	p.Seeds = s.Seeds[:min(len(s.Seeds), maxShown)]
	p.MoreSeeds = len(s.Seeds) - len(p.Seeds)
	for _, e := range p.Exports {
		for _, w := range e.Waiting[:min(len(e.Waiting), maxShown-len(p.Waits))] {
			p.Waits = append(p.Waits, exportWait{e.Name, w})
		}
	}
	return p
}

func newFigures(s Status) []figure {
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
	waiting := "none"
	if waits > 0 {
		waiting = "longest " + formatAge(longest)
	}
	return []figure{
		{"local", "Local", plaintext.Percent(local, whole), plaintext.Size(local) + " of " + plaintext.Size(whole)},
		{"hits", "Answered at once", plaintext.Percent(hits, reads), "of " + humanize.Comma(reads) + " reads"},
		{"served", "To clients", plaintext.Size(int64(s.Rates.Served)) + "/s", fmt.Sprintf("%.0f requests/s", s.Rates.Requests)},
		{"fetched", "From stores", plaintext.Size(int64(s.Rates.Stored)) + "/s", "as stored"},
		{"waiting", "Reads waiting", humanize.Comma(waits), waiting},
	}
}

// drawing is the map of an export as SVG.
type drawing struct {
	Width, Height int
	Shapes        []shape
	SeedShapes    []shape // of the cells that seeds may have
	Grid          string
	Waits         string // path around the cells of awaited chunks
}

// shape has all cells of a level.
type shape struct{ Class, Path string }

// newDrawing draws the map of an export. It returns nil if the map is empty.
func newDrawing(e Export) *drawing {
	if e.Map == "" {
		return nil
	}
	height := (len(e.Map) + columns - 1) / columns * cellHeight
	return &drawing{columns * cellWidth, height, levelShapes(e.Map, levels), levelShapes(e.SeedMap, levels[1:]), gridPath(height), waitsPath(e)}
}

// levelShapes returns a shape for each of the levels that has cells. Adjacent cells are joined.
func levelShapes(cells, levels string) (all []shape) {
	for _, level := range levels {
		var path strings.Builder
		for i := 0; i < len(cells); i++ {
			n := runLength(cells, i, byte(level))
			if n == 0 {
				continue
			}
			path.WriteString(cellsPath(i, n))
			i += n - 1
		}
		if path.Len() > 0 {
			all = append(all, shape{"c" + string(level), path.String()})
		}
	}
	return all
}

// runLength returns the number of cells with a level from cell i on, in one row.
func runLength(cells string, i int, level byte) (n int) {
	for i+n < len(cells) && cells[i+n] == level && (n == 0 || (i+n)%columns != 0) {
		n++
	}
	return n
}

func cellsPath(i, n int) string {
	return fmt.Sprintf("M%d %dh%dv%dh-%dz", i%columns*cellWidth, i/columns*cellHeight, n*cellWidth, cellHeight, n*cellWidth)
}

// gridPath returns the lines between cells.
func gridPath(height int) string {
	var path strings.Builder
	for x := cellWidth; x < columns*cellWidth; x += cellWidth {
		fmt.Fprintf(&path, "M%d 0v%d", x, height)
	}
	for y := cellHeight; y < height; y += cellHeight {
		fmt.Fprintf(&path, "M0 %dh%d", y, columns*cellWidth)
	}
	return path.String()
}

// waitsPath returns the path around the cells of awaited chunks. The map of the export must not be
// empty.
func waitsPath(e Export) string {
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
		path.WriteString(cellsPath(i, 1))
	}
	return path.String()
}

// countRequests returns the number of requests to a store, or of the failed ones.
func countRequests(all []Results, failed bool) (n int64) {
	for _, r := range all {
		if !failed || r.Result != "ok" {
			n += r.Count
		}
	}
	return n
}

func newUsageRows(s Status) []usageRow {
	all := []usageRow{
		newUsageRow("Chunks in memory", s.Memory.Bytes, s.Memory.Limit, ""),
		newUsageRow("Requests and replies", s.InFlight.Bytes, s.InFlight.Limit, ""),
	}
	if c := s.Cache; c != nil {
		note := "evicted " + plaintext.Size(c.Evicted)
		if c.Damaged > 0 {
			note += ", " + humanize.Comma(c.Damaged) + " damaged chunks found"
		}
		if !c.Working {
			note = "the disk fails; " + note
		}
		all = append(all, newUsageRow("Images on disk", c.Bytes, c.Limit, note))
	}
	n := s.Connections
	return append(all, usageRow{"Connections", fmt.Sprint(n.Now), fmt.Sprint(n.Limit), humanize.Comma(n.Refused) + " refused", percentOf(int64(n.Now), int64(n.Limit))})
}

func newUsageRow(name string, used, limit int64, note string) usageRow {
	text := plaintext.Size(limit)
	if limit < 0 {
		text = "no limit"
	}
	return usageRow{name, plaintext.Size(used), text, note, percentOf(used, limit)}
}

func percentOf(part, whole int64) int {
	if whole <= 0 {
		return 0
	}
	return int(min(100, 100*float64(part)/float64(whole)))
}

// shortDigest returns the beginning of a digest.
func shortDigest(digest string) string { return cleanText(digest[:min(len(digest), 12)]) }

// formatAge returns a duration for display.
func formatAge(d time.Duration) string {
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

// cleanText returns the printable part of a text, up to maxName characters.
func cleanText(text string) string { return plaintext.Clean(text, maxName) }
