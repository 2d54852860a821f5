package imagemap

import (
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"cairn/internal/plaintext"
	"cairn/internal/test/browsertest"
	"cairn/seed"
)

// TestBrowser checks pages in tabs of one headless Chromium.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	chromium := browsertest.Start(t)
	for name, test := range map[string]func(*browsertest.Tab){
		"shows": testShows, "fits a phone": testFitsPhone, "without script": testWithoutScript,
		"points": testPointsAtCells, "filters": testFilters, "hostile": testHostile, "empty": testEmpty,
	} {
		t.Run(name, func(t *testing.T) { test(chromium.Tab(t)) })
	}
}

// openPage loads p from a file and returns its address.
func openPage(b *browsertest.Tab, p Page) string {
	b.T.Helper()
	name := filepath.Join(b.T.ArtifactDir(), "map.html")
	if err := os.WriteFile(name, render(b.T, p), 0o644); err != nil {
		b.T.Fatal(err)
	}
	b.Run(chromedp.Navigate("file://" + name))
	return "file://" + name
}

// checkQuiet reports messages on the console, and requests for anything but the page itself.
func checkQuiet(b *browsertest.Tab, page string) {
	b.T.Helper()
	b.Quiet(func(url string) bool { return url == page })
}

// cellCenter returns the middle of a cell on the screen.
func cellCenter(b *browsertest.Tab, cell int) (x, y float64) {
	b.T.Helper()
	at := browsertest.Ask[[]float64](b, fmt.Sprintf(`(() => {
		const p = new DOMPoint(%d, %d).matrixTransform(document.getElementById("map").getScreenCTM());
		return [p.x, p.y];
	})()`, cell%columns*cellWidth+cellWidth/2, cell/columns*cellHeight+cellHeight/2))
	return at[0], at[1]
}

// checkShown checks all content of releasePage that the page shows without a script.
func checkShown(b *browsertest.Tab) {
	b.T.Helper()
	browsertest.Sees(b, browsertest.Texts("dd strong"), []string{"21 MiB", "53 MiB", "847 MiB", "900 MiB"})
	browsertest.Sees(b, browsertest.Texts("caption"), []string{"Totals", "Largest downloads"})
	browsertest.Sees(b, browsertest.Texts("#sources tbody tr"), []string{
		"in place127 MiB14.1 %2,070", "from PARTLABEL=root-a429 MiB47.6 %6,851",
		"from /var/cache/base.squashfs123 MiB13.7 %1,954", "from /srv/images/app.img12 MiB1.3 %199",
		"from old.img8.0 MiB0.9 %127", "repeats16 MiB1.8 %255", "zeros132 MiB14.7 %2,104",
		"from the store53 MiB5.9 %848"})
	browsertest.Sees(b, browsertest.Texts("#downloads tbody tr:first-child td"),
		[]string{"310 MiB", "325,058,560", "31 MiB", "495", "12 MiB"})
	browsertest.Sees(b, `document.getElementById("map").dataset.cells.split(",").length`, 3600)
	for _, drawing := range []string{"#map", ".bar"} {
		browsertest.Sees(b, fmt.Sprintf(`document.querySelectorAll("%s .k").length`, drawing), int(classes)-1) // no chunk is from a delta
	}
}

func testShows(b *browsertest.Tab) {
	b.Run(chromedp.EmulateViewport(1200, 900))
	url := openPage(b, releasePage())
	browsertest.Sees(b, "document.title", releasePage().Title)
	checkShown(b)
	x, y := cellCenter(b, columns)
	for _, c := range []struct {
		name, medium, taste string
		paper, seed         color.RGBA
	}{
		{"light", "screen", "light", color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0x74, 0xb4, 0xe6, 0xff}},
		{"dark", "screen", "dark", color.RGBA{0x10, 0x14, 0x18, 0xff}, color.RGBA{0x2d, 0x72, 0xb2, 0xff}},
		{"paper", "print", "dark", color.RGBA{0xff, 0xff, 0xff, 0xff}, color.RGBA{0x74, 0xb4, 0xe6, 0xff}},
	} {
		b.Run(browsertest.Scheme(c.medium, c.taste))
		img := b.Picture(c.name + ".png")
		if got := color.RGBAModel.Convert(img.At(1199, 1)); got != c.paper {
			b.T.Errorf("%s: the page is %v, want %v", c.name, got, c.paper)
		}
		if got := color.RGBAModel.Convert(img.At(int(x), int(y))); c.medium == "screen" && got != c.seed {
			b.T.Errorf("%s: a cell of a seed is %v, want %v", c.name, got, c.seed)
		}
	}
	checkQuiet(b, url)
}

func testFitsPhone(b *browsertest.Tab) {
	b.Run(chromedp.EmulateViewport(360, 700, chromedp.EmulateScale(2)))
	openPage(b, releasePage())
	b.Picture("phone.png")
	browsertest.Sees(b, "document.documentElement.scrollWidth", 360)
}

func testWithoutScript(b *browsertest.Tab) {
	b.Run(emulation.SetScriptExecutionDisabled(true))
	openPage(b, releasePage())
	browsertest.Sees(b, browsertest.Texts("#detail"), []string{""})
	checkShown(b)
}

func testPointsAtCells(b *browsertest.Tab) {
	const hint = "Point at a cell, or focus the map and use the arrow keys, for its details. " +
		"Click a source to see it alone."
	b.Run(chromedp.EmulateViewport(1200, 900))
	url := openPage(b, releasePage())
	x, y := cellCenter(b, 4*columns+5)
	const detail = `document.getElementById("detail").textContent`
	const mark = `document.getElementById("mark").getAttribute("d")`
	browsertest.Sees(b, detail, hint)
	b.Run(chromedp.MouseEvent(input.MouseMoved, x, y))
	browsertest.Sees(b, detail, "129.25 MiB to 129.5 MiB: from PARTLABEL=root-a")
	browsertest.Sees(b, mark, "M40 48h8v12h-8z")
	b.Run(chromedp.MouseEvent(input.MouseMoved, 1, 1))
	browsertest.Sees(b, detail, hint)

	b.Run(chromedp.Focus("#frame"), chromedp.KeyEvent(kb.Home), chromedp.KeyEvent(kb.ArrowRight))
	browsertest.Sees(b, detail, "256 KiB to 512 KiB: from the store")
	b.Run(chromedp.KeyEvent(kb.ArrowLeft), chromedp.KeyEvent(kb.ArrowLeft))
	browsertest.Sees(b, detail, "0 B to 256 KiB: from the store")
	b.Run(chromedp.KeyEvent(kb.End), chromedp.KeyEvent(kb.ArrowDown))
	browsertest.Sees(b, detail, "899.75 MiB to 900 MiB: zeros")

	b.Run(chromedp.Focus("#downloads tbody tr"))
	browsertest.Sees(b, mark, "M704 108h320v12h-320zM0 120h672v12h-672z")
	checkQuiet(b, url)
}

func testFilters(b *browsertest.Tab) {
	url := openPage(b, releasePage())
	const (
		store  = "tr[data-class='8'] button"
		zeros  = "tr[data-class='6'] button"
		bright = `[...document.querySelectorAll("#map .k:not(.dim)")].map(e => e.getAttribute("class"))`
		others = `document.querySelectorAll("#map .dim").length`
	)
	b.Run(chromedp.Click(store, chromedp.ByQuery))
	browsertest.Sees(b, bright, []string{"k k8"})
	b.Run(chromedp.Click(zeros, chromedp.ByQuery))
	browsertest.Sees(b, bright, []string{"k k6"})
	browsertest.Sees(b, `document.querySelectorAll("button[aria-pressed=true]").length`, 1)
	b.Run(chromedp.Focus(zeros, chromedp.ByQuery), chromedp.KeyEvent(kb.Enter))
	browsertest.Sees(b, others, 0)
	checkQuiet(b, url)
}

// testHostile checks that names with markup are shown as text.
func testHostile(b *browsertest.Tab) {
	p := newPage(Chunk{Size: 5000, Kind: seed.Local}, Chunk{Size: 10, Kind: seed.Fetch})
	p.Title, p.Seeds = hostile, []string{hostile}
	url := openPage(b, p)
	browsertest.Sees(b, browsertest.Texts("title, h1"), []string{hostile, hostile})
	b.Run(chromedp.Focus("#frame"))
	browsertest.Sees(b, browsertest.Texts("#detail"), []string{"0 B to 4 KiB: from " + plaintext.Clean(hostile, maxName)})
	checkQuiet(b, url)
}

// testEmpty checks that the page of an empty image has totals and no map.
func testEmpty(b *browsertest.Tab) {
	url := openPage(b, newPage())
	browsertest.Sees(b, browsertest.Texts("#sources tbody tr"), []string{"from the store0 B-0"})
	browsertest.Sees(b, `document.getElementById("map")`, any(nil))
	checkQuiet(b, url)
}
