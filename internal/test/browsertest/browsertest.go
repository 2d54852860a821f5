// Package browsertest opens pages in a headless Chromium, for tests of the pages that cairn makes.
package browsertest

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/need"
)

// patience limits the time of a test in a browser.
const patience = 2 * time.Minute

// Browser is a Chromium for one test.
type Browser struct{ ctx context.Context }

// Start starts a browser that ends with the test.
func Start(t *testing.T) *Browser {
	t.Helper()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(need.Tool(t, "chromium")), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(patience)) // it may start slowly
	// Not the test's context, which ends before the cleanup that closes the browser.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, _ = chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) })
	if err := chromedp.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return &Browser{ctx}
}

// Tab is a tab of a browser. It records requests and console messages.
type Tab struct {
	T   *testing.T
	ctx context.Context

	mu       sync.Mutex // guards the fields below
	requests []string
	said     []string // messages on the console
}

// Tab opens a tab. The test fails when an action in the tab fails.
func (b *Browser) Tab(t *testing.T) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	tab := &Tab{T: t, ctx: ctx}
	chromedp.ListenTarget(ctx, tab.recordEvent)
	tab.Run(network.Enable(), cdplog.Enable(), emulation.SetFocusEmulationEnabled(true))
	return tab
}

func (b *Tab) recordEvent(event any) {
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

// Run runs actions in the tab.
func (b *Tab) Run(actions ...chromedp.Action) {
	b.T.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.T.Fatal(err)
	}
}

// Ask returns the value of a JavaScript expression.
func Ask[T any](b *Tab, expression string) T {
	b.T.Helper()
	var v T
	b.Run(chromedp.Evaluate(expression, &v))
	return v
}

// Sees fails the test unless the expression has the value want.
func Sees[T any](b *Tab, expression string, want T) {
	b.T.Helper()
	if diff := cmp.Diff(want, Ask[T](b, expression)); diff != "" {
		b.T.Errorf("%s (-want +got):\n%s", expression, diff)
	}
}

// Texts returns an expression for the texts of all elements that a selector matches.
func Texts(selector string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].map(e => e.textContent)", selector)
}

// Quiet fails the test if the console has messages, or the page has requested an unexpected URL.
func (b *Tab) Quiet(expected func(url string) bool) {
	b.T.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.said) > 0 {
		b.T.Errorf("the console says %q, want nothing", b.said)
	}
	for _, url := range b.requests {
		if !expected(url) {
			b.T.Errorf("the page asks for %q", url)
		}
	}
}

// Picture takes a screenshot of the whole page, and saves it as an artifact of the test.
func (b *Tab) Picture(name string) image.Image {
	b.T.Helper()
	var data []byte
	b.Run(chromedp.FullScreenshot(&data, 100))
	if err := os.WriteFile(filepath.Join(b.T.ArtifactDir(), name), data, 0o644); err != nil {
		b.T.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		b.T.Fatal(err)
	}
	return img
}

// Scheme returns an action that sets the preferred color scheme (light, dark) and the medium (screen, print).
func Scheme(medium, taste string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithMedia(medium).
		WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: taste}})
}
