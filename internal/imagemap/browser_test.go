package imagemap

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/google/go-cmp/cmp"

	"cairn/internal/need"
)

// TestBrowser opens pages in tabs of one headless Chromium.
func TestBrowser(t *testing.T) {
	chromium := startChromium(t)
	for name, test := range map[string]func(*tab){
		"shows": testShows, "fits a phone": testFitsPhone, "without script": testWithoutScript,
		"points": testPoints, "filters": testFilters, "hostile": testHostile, "empty": testEmpty,
	} {
		t.Run(name, func(t *testing.T) { test(newTab(t, chromium)) })
	}
}

func startChromium(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a browser")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(need.Tool(t, "chromium")), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true))
	// Not the test's context, which ends before the cleanup that lets the browser end in peace.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) })
	if err := chromedp.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// tab is a tab of the browser, and what went on in it.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex // guards what follows
	requests []string
	said     []string // on the console, by whomever
}

func newTab(t *testing.T, chromium context.Context) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chromium)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, b.hear)
	b.run(network.Enable(), cdplog.Enable(), emulation.SetFocusEmulationEnabled(true))
	return b
}

func (b *tab) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *cdplog.EventEntryAdded:
		b.said = append(b.said, e.Entry.Text)
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, e.ExceptionDetails.Error())
	case *runtime.EventConsoleAPICalled:
		b.said = append(b.said, string(e.Type))
	}
}

func (b *tab) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// open loads p from a file and returns its address.
func (b *tab) open(p Page) string {
	b.t.Helper()
	name := filepath.Join(b.t.ArtifactDir(), "map.html")
	if err := os.WriteFile(name, render(b.t, p), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.run(chromedp.Navigate("file://" + name))
	return "file://" + name
}

// ask is the value of an expression of JavaScript.
func ask[T any](b *tab, expression string) T {
	b.t.Helper()
	var v T
	b.run(chromedp.Evaluate(expression, &v))
	return v
}

// sees complains unless an expression has the value want.
func sees[T any](b *tab, expression string, want T) {
	b.t.Helper()
	if diff := cmp.Diff(want, ask[T](b, expression)); diff != "" {
		b.t.Errorf("%s (-want +got):\n%s", expression, diff)
	}
}

// quiet complains of anything on the console, and of requests for anything but the page itself.
func (b *tab) quiet(url string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.said) > 0 {
		b.t.Errorf("the console says %q, want nothing", b.said)
	}
	for _, r := range b.requests {
		if r != url {
			b.t.Errorf("the page asks for %q, want nothing but %q", r, url)
		}
	}
}

// picture takes a screenshot of the whole page, and keeps it as an artifact of the test.
func (b *tab) picture(name string) image.Image {
	b.t.Helper()
	var data []byte
	b.run(chromedp.FullScreenshot(&data, 100))
	if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), name), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		b.t.Fatal(err)
	}
	return img
}

// scheme sets what the page learns of the user's taste and of the medium.
func scheme(medium, taste string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithMedia(medium).
		WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: taste}})
}

// texts is an expression for what the elements of a selector say.
func texts(selector string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].map(e => e.textContent)", selector)
}

// spot is the middle of a cell on the screen.
func (b *tab) spot(cell int) (x, y float64) {
	b.t.Helper()
	at := ask[[]float64](b, fmt.Sprintf(`(() => {
		const p = new DOMPoint(%d, %d).matrixTransform(document.getElementById("map").getScreenCTM());
		return [p.x, p.y];
	})()`, cell%columns*cellWidth+cellWidth/2, cell/columns*cellHeight+cellHeight/2))
	return at[0], at[1]
}

// shows complains unless the page shows all there is to see of release without a script.
func (b *tab) shows() {
	b.t.Helper()
	sees(b, texts("dd strong"), []string{"21 MiB", "53 MiB", "847 MiB", "900 MiB"})
	sees(b, texts("caption"), []string{"Totals", "Largest downloads"})
	sees(b, texts("#sources tbody tr"), []string{
		"in place127 MiB14.1 %2,070", "from PARTLABEL=root-a429 MiB47.6 %6,851",
		"from /var/cache/base.squashfs123 MiB13.7 %1,954", "from /srv/images/app.img12 MiB1.3 %199",
		"from old.img8.0 MiB0.9 %127", "repeats16 MiB1.8 %255", "zeros132 MiB14.7 %2,104",
		"from the store53 MiB5.9 %848"})
	sees(b, texts("#downloads tbody tr:first-child td"),
		[]string{"310 MiB", "325,058,560", "31 MiB", "495", "12 MiB"})
	sees(b, `document.getElementById("map").dataset.cells.split(",").length`, 3600)
	for _, drawing := range []string{"#map", ".bar"} {
		sees(b, fmt.Sprintf(`document.querySelectorAll("%s .k").length`, drawing), int(classes))
	}
}

func testShows(b *tab) {
	b.run(chromedp.EmulateViewport(1200, 900))
	url := b.open(release())
	sees(b, "document.title", release().Title)
	b.shows()
	x, y := b.spot(columns)
	for _, c := range []struct {
		name, medium, taste string
		paper, seed         color.RGBA
	}{
		{"light", "screen", "light", color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0x74, 0xb4, 0xe6, 0xff}},
		{"dark", "screen", "dark", color.RGBA{0x10, 0x14, 0x18, 0xff}, color.RGBA{0x2d, 0x72, 0xb2, 0xff}},
		{"paper", "print", "dark", color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0x74, 0xb4, 0xe6, 0xff}},
	} {
		b.run(scheme(c.medium, c.taste))
		img := b.picture(c.name + ".png")
		if got := color.RGBAModel.Convert(img.At(1199, 1)); got != c.paper {
			b.t.Errorf("%s: the page is %v, want %v", c.name, got, c.paper)
		}
		if got := color.RGBAModel.Convert(img.At(int(x), int(y))); c.medium == "screen" && got != c.seed {
			b.t.Errorf("%s: a cell of a seed is %v, want %v", c.name, got, c.seed)
		}
	}
	b.quiet(url)
}

func testFitsPhone(b *tab) {
	b.run(chromedp.EmulateViewport(360, 700, chromedp.EmulateScale(2)))
	b.open(release())
	b.picture("phone.png")
	sees(b, "document.documentElement.scrollWidth", 360)
}

func testWithoutScript(b *tab) {
	b.run(emulation.SetScriptExecutionDisabled(true))
	b.open(release())
	sees(b, texts("#detail"), []string{""})
	b.shows()
}

func testPoints(b *tab) {
	const hint = "Point at a cell, or focus the map and use the arrow keys, for its details. " +
		"Click a source to see it alone."
	b.run(chromedp.EmulateViewport(1200, 900))
	url := b.open(release())
	x, y := b.spot(4*columns + 5)
	const detail = `document.getElementById("detail").textContent`
	const mark = `document.getElementById("mark").getAttribute("d")`
	sees(b, detail, hint)
	b.run(chromedp.MouseEvent(input.MouseMoved, x, y))
	sees(b, detail, "129.25 MiB to 129.5 MiB: from PARTLABEL=root-a")
	sees(b, mark, "M40 48h8v12h-8z")
	b.run(chromedp.MouseEvent(input.MouseMoved, 1, 1))
	sees(b, detail, hint)

	b.run(chromedp.Focus("#frame"), chromedp.KeyEvent(kb.Home), chromedp.KeyEvent(kb.ArrowRight))
	sees(b, detail, "256 KiB to 512 KiB: from the store")
	b.run(chromedp.KeyEvent(kb.ArrowLeft), chromedp.KeyEvent(kb.ArrowLeft))
	sees(b, detail, "0 B to 256 KiB: from the store")
	b.run(chromedp.KeyEvent(kb.End), chromedp.KeyEvent(kb.ArrowDown))
	sees(b, detail, "899.75 MiB to 900 MiB: zeros")

	b.run(chromedp.Focus("#downloads tbody tr"))
	sees(b, mark, "M704 108h320v12h-320zM0 120h672v12h-672z")
	b.quiet(url)
}

func testFilters(b *tab) {
	url := b.open(release())
	const (
		store  = "tr[data-class='7'] button"
		zeros  = "tr[data-class='6'] button"
		bright = `[...document.querySelectorAll("#map .k:not(.dim)")].map(e => e.getAttribute("class"))`
		others = `document.querySelectorAll("#map .dim").length`
	)
	b.run(chromedp.Click(store, chromedp.ByQuery))
	sees(b, bright, []string{"k k7"})
	b.run(chromedp.Click(zeros, chromedp.ByQuery))
	sees(b, bright, []string{"k k6"})
	sees(b, `document.querySelectorAll("button[aria-pressed=true]").length`, 1)
	b.run(chromedp.Focus(zeros, chromedp.ByQuery), chromedp.KeyEvent(kb.Enter))
	sees(b, others, 0)
	b.quiet(url)
}

// testHostile: whatever names hold is text.
func testHostile(b *tab) {
	p := page(Chunk{Size: 5000, Kind: Seed}, Chunk{Size: 10, Kind: Download})
	p.Title, p.Note, p.Seeds = hostile, hostile, []string{hostile}
	url := b.open(p)
	sees(b, texts("title, h1, header p"), []string{hostile, hostile, hostile})
	b.run(chromedp.Focus("#frame"))
	sees(b, texts("#detail"), []string{"0 B to 4 KiB: from " + clean(hostile, maxName)})
	b.quiet(url)
}

// testEmpty: an empty image has totals and no map.
func testEmpty(b *tab) {
	url := b.open(page())
	sees(b, texts("#sources tbody tr"), []string{"from the store0 B-0"})
	sees(b, `document.getElementById("map")`, any(nil))
	b.quiet(url)
}
