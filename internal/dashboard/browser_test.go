package dashboard

import (
	"bytes"
	"context"
	"fmt"
	"image/color"
	"image/png"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"cairn/internal/need"
)

// TestBrowser opens the page in tabs of one headless Chromium.
func TestBrowser(t *testing.T) {
	chromium := startChromium(t)
	for name, test := range map[string]func(*tab){
		"shows": testShows, "fits a phone": testFitsPhone, "without script": testWithoutScript, "renews": testRenews,
		"hostile": testHostileNames,
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

// sees complains unless an expression has the value want.
func sees[T any](b *tab, expression string, want T) {
	b.t.Helper()
	var got T
	b.run(chromedp.Evaluate(expression, &got))
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("%s (-want +got):\n%s", expression, diff)
	}
}

// quiet complains of anything on the console, and of requests for anything but the page's own address.
func (b *tab) quiet(at string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.said) > 0 {
		b.t.Errorf("the console says %q, want nothing", b.said)
	}
	for _, r := range b.requests {
		if u, err := url.Parse(r); err != nil || !strings.HasPrefix(at, "http://"+u.Host+"/") {
			b.t.Errorf("the page asks for %q, want nothing but from %q", r, at)
		}
	}
}

// picture takes a screenshot of the whole page, keeps it as an artifact of the test, and returns its corner's colour.
func (b *tab) picture(name string) color.Color {
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
	return color.RGBAModel.Convert(img.At(1, 1))
}

func taste(scheme string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithMedia("screen").
		WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}})
}

// texts is an expression for what the elements of a selector say.
func texts(selector string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].map(e => e.textContent)", selector)
}

// shows complains unless the page shows the sample.
func (b *tab) shows() {
	b.t.Helper()
	sees(b, texts("h3 bdi"), []string{"debian-13", "rescue"})
	sees(b, texts("article strong"), []string{"34.4 %", "100.0 %"})
	sees(b, texts("#figures strong"), []string{"37.0 %", "94.6 %", "0 B/s", "0 B/s", "2"})
	sees(b, texts("#clients tbody td:first-child"), []string{"192.0.2.17:51234", "[2001:db8::12]:40022"})
	sees(b, texts("#waits code"), []string{"abababababab", "cdcdcdcdcdcd"})
	sees(b, `document.querySelectorAll("#export-0 .w").length`, 1)
	sees(b, `document.querySelector("#export-0 svg").dataset.cells.length`, 960)
	sees(b, texts("#stores td:first-child"), []string{"https://images.example.com/default.castr", "/var/lib/images/default.castr"})
}

func testShows(b *tab) {
	at := board(b.t, sampleStatus)
	b.run(chromedp.EmulateViewport(1200, 900), chromedp.Navigate(at))
	b.shows()
	for scheme, want := range map[string]color.RGBA{"light": {0xff, 0xff, 0xff, 0xff}, "dark": {0x10, 0x14, 0x18, 0xff}} {
		b.run(taste(scheme))
		if got := b.picture(scheme + ".png"); got != want {
			b.t.Errorf("%s: the page is %v, want %v", scheme, got, want)
		}
	}
	b.quiet(at)
}

func testFitsPhone(b *tab) {
	b.run(chromedp.EmulateViewport(360, 700, chromedp.EmulateScale(2)), chromedp.Navigate(board(b.t, sampleStatus)))
	b.picture("phone.png")
	sees(b, "document.documentElement.scrollWidth", 360)
}

func testWithoutScript(b *tab) {
	at := board(b.t, sampleStatus)
	b.run(emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(at))
	b.shows()
	sees(b, `document.querySelector("noscript meta").getAttribute("content")`, "5")
	b.quiet(at)
}

// testRenews: the page follows what happens, and says so when it cannot.
func testRenews(b *tab) {
	var mu sync.Mutex
	s := sampleStatus()
	at := board(b.t, func() Status {
		mu.Lock()
		defer mu.Unlock()
		return s
	})
	b.run(chromedp.Navigate(at))
	b.run(chromedp.Poll(`document.querySelector("#export-0 strong").textContent === "34.4 %"`, nil))
	mu.Lock()
	s.Exports = slices.Clone(s.Exports)
	s.Exports[0].Local, s.Exports[0].Map, s.Exports[0].Waiting = s.Exports[0].Size, strings.Repeat("a", 960), nil
	mu.Unlock()
	b.run(chromedp.Poll(`document.querySelector("#export-0 strong").textContent === "100.0 %" && !document.querySelector("#waits table")
		&& !document.querySelector(".map .c0")`, nil))
	b.quiet(at)
}

// testHostileNames: whatever names hold is text.
func testHostileNames(b *tab) {
	at := board(b.t, hostileStatus)
	b.run(chromedp.Navigate(at))
	sees(b, texts("h3 bdi"), []string{clean(hostile + "0"), clean(hostile + "1")})
	sees(b, `document.querySelectorAll("img").length`, 0)
	b.quiet(at)
}
