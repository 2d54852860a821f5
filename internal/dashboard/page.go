package dashboard

import (
	"bytes"
	"cmp"
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

// view is the page in the words of its template.
type view struct {
	Version, Uptime, At string
	Figures             []figure
	Waits               []waitRow
	Exports             []card
	Clients             []clientRow
	Stores              []storeRow
	Rooms               []roomRow
	MoreExports         int
	MoreClients         int
}

type figure struct{ ID, Name, Value, Note string }

type waitRow struct{ Export, At, Size, Chunk, For, Why string }

// card is an export.
type card struct {
	ID, Name, Identity, Size, Percent, Local string
	Facts                                    []fact
	Shapes                                   []shape
	Waits                                    string // a path around the cells that somebody waits for
	Grid                                     string
	Width, Height                            int
	Cells                                    string
}

type fact struct{ Name, Value string }

// shape is all cells of a level.
type shape struct{ Class, Path string }

type clientRow struct{ Address, Export, For, Requests, Served, Waits string }

type storeRow struct {
	Name, State, Why, Requests, Failed, InFlight, Stored, Retries, Gate string
	Up                                                                  bool
}

type roomRow struct {
	Name, Used, Limit, Note string
	Share                   int // of 100
}

func render(s Status) ([]byte, error) {
	t, err := template.New("page").Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, show(s)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func show(s Status) view {
	v := view{Version: clean(s.Version), Uptime: age(s.Now.Sub(s.Started)), At: s.Now.UTC().Format("15:04:05 UTC")}
	v.Figures = figures(s)
	v.MoreExports, v.MoreClients = max(0, len(s.Exports)-maxShown), max(0, len(s.Clients)-maxShown)
	for i, e := range s.Exports[:min(len(s.Exports), maxShown)] {
		v.Exports = append(v.Exports, newCard(i, e))
		for _, w := range e.Waiting {
			v.Waits = append(v.Waits, waitRow{clean(e.Name), exact(w.Offset), size(w.Size), short(w.Chunk), age(s.Now.Sub(w.Since)), why(w)})
		}
	}
	v.Waits = v.Waits[:min(len(v.Waits), maxShown)]
	for _, c := range s.Clients[:min(len(s.Clients), maxShown)] {
		v.Clients = append(v.Clients, clientRow{clean(c.Address), clean(c.Export), age(s.Now.Sub(c.Since)),
			humanize.Comma(c.Requests), size(c.Served), clientWaits(c, s.Now)})
	}
	for _, st := range s.Stores {
		v.Stores = append(v.Stores, newStoreRow(st, s.Now))
	}
	v.Rooms = rooms(s)
	return v
}

func figures(s Status) []figure {
	var whole, local, reads, hits, waits int64
	longest := time.Duration(0)
	for _, e := range s.Exports {
		whole, local = whole+e.Size, local+e.Local
		reads, hits = reads+e.Reads, hits+e.MemoryHits+e.DiskHits
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
		{"local", "Local", share(local, whole), size(local) + " of " + size(whole)},
		{"hits", "Answered at once", share(hits, reads), "of " + humanize.Comma(reads) + " reads"},
		{"served", "To clients", size(int64(s.Rates.Served)) + "/s", fmt.Sprintf("%.0f requests/s", s.Rates.Requests)},
		{"fetched", "From stores", size(int64(s.Rates.Stored)) + "/s", "as stored"},
		{"waiting", "Reads waiting", humanize.Comma(waits), waiting},
	}
}

func newCard(i int, e Export) card {
	c := card{ID: fmt.Sprint("export-", i), Name: clean(e.Name), Identity: clean(e.Identity), Size: size(e.Size),
		Percent: share(e.Local, e.Size), Local: size(e.Local), Cells: e.Map, Width: columns * cellWidth}
	c.Height = (len(e.Map) + columns - 1) / columns * cellHeight
	c.Shapes, c.Waits, c.Grid = shapes(e.Map), around(e), grid(c.Height)
	c.Facts = []fact{
		{"clients", fmt.Sprint(e.Clients)},
		{"served", size(e.Served)},
		{"hits", share(e.MemoryHits+e.DiskHits, e.Reads)},
		{"from memory", humanize.Comma(e.MemoryHits)},
		{"from disk", humanize.Comma(e.DiskHits)},
		{"from the store", size(e.Fetched)},
		{"other images", humanize.Comma(e.FromOther)},
		{"fetched ahead", size(e.Prefetched)},
		{"of it used", share(e.Used, e.Prefetched)},
		{"waited", age(time.Duration(e.StallTime * float64(time.Second)))},
		{"failed reads", humanize.Comma(e.Failures)},
	}
	return c
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

// around marks the cells of chunks that are waited for.
func around(e Export) string {
	var path strings.Builder
	if len(e.Map) == 0 {
		return ""
	}
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

func clientWaits(c Client, now time.Time) string {
	if len(c.Pending) == 0 {
		return "-"
	}
	p := c.Pending[0]
	text := fmt.Sprintf("%s of %s at %s, for %s", p.Command, size(p.Length), exact(p.Offset), age(now.Sub(p.Since)))
	if p.Wait != nil {
		text += ": chunk " + short(p.Wait.Chunk)
	}
	if n := len(c.Pending) - 1; n > 0 {
		text += fmt.Sprintf(", and %d more", n)
	}
	return text
}

func newStoreRow(s Store, now time.Time) storeRow {
	r := storeRow{Name: clean(s.Name), Up: s.Up, State: "answers", InFlight: fmt.Sprint(s.InFlight), Stored: size(s.Stored),
		Retries: humanize.Comma(s.Retries), Gate: "-"}
	if !s.Up {
		r.State, r.Why = "away for "+age(now.Sub(s.Since)), clean(s.Error)
	}
	if s.GateLimit > 0 {
		r.Gate = fmt.Sprint(s.GateLimit)
	}
	var all, failed int64
	for _, q := range s.Requests {
		all += q.Count
		if q.Result != "ok" {
			failed += q.Count
		}
	}
	r.Requests, r.Failed = humanize.Comma(all), humanize.Comma(failed)
	return r
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

func why(w Wait) string { return cmp.Or(clean(w.Error), "no answer yet") }

// short is the beginning of a digest.
func short(digest string) string { return clean(digest[:min(len(digest), 12)]) }

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// exact is a number of bytes that says where something is.
func exact(n int64) string { return humanize.Comma(n) }

func share(part, whole int64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

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
