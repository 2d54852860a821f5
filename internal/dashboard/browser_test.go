package dashboard

import (
	"image/color"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"cairn/internal/test/browsertest"
)

// TestBrowser opens the page in tabs of one headless Chromium.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	chromium := browsertest.Start(t)
	for name, test := range map[string]func(*browsertest.Tab){
		"shows": testShows, "fits a phone": testFitsPhone, "without script": testWithoutScript, "renews": testRenews,
		"hostile": testHostileNames,
	} {
		t.Run(name, func(t *testing.T) { test(chromium.Tab(t)) })
	}
}

// checkQuiet fails the test for messages on the console and for requests to other addresses than
// the page's.
func checkQuiet(b *browsertest.Tab, at string) {
	b.T.Helper()
	b.Quiet(func(url string) bool { return strings.HasPrefix(url, at) })
}

// checkSample checks that the page shows the sample.
func checkSample(b *browsertest.Tab) {
	b.T.Helper()
	browsertest.Sees(b, browsertest.Texts("h3 bdi"), []string{"debian-13", "rescue"})
	browsertest.Sees(b, browsertest.Texts("article strong"), []string{"34.4 %", "100.0 %"})
	browsertest.Sees(b, browsertest.Texts("#figures strong"), []string{"37.0 %", "94.6 %", "0 B/s", "0 B/s", "2"})
	browsertest.Sees(b, browsertest.Texts("#clients tbody td:first-child"), []string{"192.0.2.17:51234", "[2001:db8::12]:40022"})
	browsertest.Sees(b, browsertest.Texts("#waits code"), []string{"abababababab", "cdcdcdcdcdcd"})
	browsertest.Sees(b, `document.querySelectorAll("#export-0 .w").length`, 1)
	browsertest.Sees(b, `document.querySelector("#export-0 svg").dataset.cells.length`, 960)
	browsertest.Sees(b, browsertest.Texts("#stores td:first-child"), []string{"https://images.example.com/default.castr", "/var/lib/images/default.castr"})
}

func testShows(b *browsertest.Tab) {
	at := startBoard(b.T, sampleStatus)
	b.Run(chromedp.EmulateViewport(1200, 900), chromedp.Navigate(at))
	checkSample(b)
	for scheme, want := range map[string]color.RGBA{"light": {0xff, 0xff, 0xff, 0xff}, "dark": {0x10, 0x14, 0x18, 0xff}} {
		b.Run(browsertest.Scheme("screen", scheme))
		if got := color.RGBAModel.Convert(b.Picture(scheme+".png").At(1, 1)); got != want {
			b.T.Errorf("%s: the page is %v, want %v", scheme, got, want)
		}
	}
	checkQuiet(b, at)
}

func testFitsPhone(b *browsertest.Tab) {
	b.Run(chromedp.EmulateViewport(360, 700, chromedp.EmulateScale(2)), chromedp.Navigate(startBoard(b.T, sampleStatus)))
	b.Picture("phone.png")
	browsertest.Sees(b, "document.documentElement.scrollWidth", 360)
}

func testWithoutScript(b *browsertest.Tab) {
	at := startBoard(b.T, sampleStatus)
	b.Run(emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(at))
	checkSample(b)
	browsertest.Sees(b, `document.querySelector("noscript meta").getAttribute("content")`, "5")
	checkQuiet(b, at)
}

// testRenews: the page follows the status.
func testRenews(b *browsertest.Tab) {
	var mu sync.Mutex
	s := sampleStatus()
	at := startBoard(b.T, func() Status {
		mu.Lock()
		defer mu.Unlock()
		return s
	})
	b.Run(chromedp.Navigate(at))
	b.Run(chromedp.Poll(`document.querySelector("#export-0 strong").textContent === "34.4 %"`, nil))
	mu.Lock()
	s.Exports = slices.Clone(s.Exports)
	s.Exports[0].Local, s.Exports[0].Map, s.Exports[0].Waiting = s.Exports[0].Size, strings.Repeat("a", 960), nil
	mu.Unlock()
	b.Run(chromedp.Poll(`document.querySelector("#export-0 strong").textContent === "100.0 %" && !document.querySelector("#waits table")
		&& !document.querySelector(".map .c0")`, nil))
	checkQuiet(b, at)
}

// testHostileNames: names are text, whatever they contain.
func testHostileNames(b *browsertest.Tab) {
	at := startBoard(b.T, hostileStatus)
	b.Run(chromedp.Navigate(at))
	browsertest.Sees(b, browsertest.Texts("h3 bdi"), []string{cleanText(hostileText + "0"), cleanText(hostileText + "1")})
	browsertest.Sees(b, `document.querySelectorAll("img").length`, 0)
	checkQuiet(b, at)
}
