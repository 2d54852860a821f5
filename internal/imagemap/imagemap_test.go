package imagemap

import (
	"bytes"
	"errors"
	"iter"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cairn/seed"
)

func render(t testing.TB, p Page) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Render(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// newPage returns a page of an image with the given chunks.
func newPage(chunks ...Chunk) Page {
	p := Page{Title: "title", Chunks: slices.Values(chunks)}
	for _, c := range chunks {
		p.Size += c.Size
	}
	return p
}

// releasePage returns a page of a typical update of a system image. Most chunks are local, with new files and zeros
// among them.
func releasePage() Page {
	const mib = 1 << 20
	random := rand.New(rand.NewPCG(1, 2))
	var chunks []Chunk
	var size int64
	for _, part := range []struct {
		end      int64
		chunk    Chunk
		replaced float64 // the share of chunks to download instead
	}{
		{1 * mib, Chunk{Kind: seed.Fetch}, 0}, {310 * mib, Chunk{Kind: seed.Local}, .01}, {341 * mib, Chunk{Kind: seed.Fetch}, 0},
		{420 * mib, Chunk{Kind: seed.InPlace}, .003}, {436 * mib, Chunk{Kind: seed.Copy}, 0},
		{560 * mib, Chunk{Kind: seed.Local, Seed: 1}, .008}, {573 * mib, Chunk{Kind: seed.Fetch}, 0},
		{700 * mib, Chunk{Kind: seed.Local}, .03}, {712 * mib, Chunk{Kind: seed.Zero}, 0}, {760 * mib, Chunk{Kind: seed.InPlace}, .001},
		{772 * mib, Chunk{Kind: seed.Local, Seed: 2}, 0}, {780 * mib, Chunk{Kind: seed.Local, Seed: 3}, 0},
		{900 * mib, Chunk{Kind: seed.Zero}, 0},
	} {
		for size < part.end {
			c := part.chunk
			if random.Float64() < part.replaced {
				c = Chunk{Kind: seed.Fetch}
			}
			c.Size = min(16<<10+random.Int64N(96<<10), part.end-size)
			if c.Kind == seed.Fetch {
				c.Stored = (c.Size + 1) * 2 / 5
			}
			chunks = append(chunks, c)
			size += c.Size
		}
	}
	p := newPage(chunks...)
	p.Title = "release-42.caibx onto PARTLABEL=root-b"
	p.Seeds = []string{"PARTLABEL=root-a", "/var/cache/base.squashfs", "/srv/images/app.img", "old.img"}
	return p
}

// hostile is a text that injects markup into a page without escaping.
const hostile = `</title></style></script><script>alert(1)</script>` +
	`<img src="//x.test/" onerror='alert(2)'>"'&` + "`${1}`"

// terabytePage returns a page of an image of 2^40 bytes, with a million chunks of random sources.
func terabytePage() Page {
	const chunks = 1_000_000
	return Page{Title: "1 TiB", Size: 1 << 40, Seeds: make([]string, 9), Chunks: func(yield func(Chunk) bool) {
		random := rand.New(rand.NewPCG(3, 4))
		var size int64
		for i := range chunks {
			c := Chunk{Size: 1 + random.Int64N(1<<20), Kind: seed.Kind(random.IntN(5)), Seed: random.IntN(9), Stored: 1}
			if i == chunks-1 {
				c.Size = 1<<40 - size
			}
			size += c.Size
			if !yield(c) {
				return
			}
		}
	}}
}

// worstPage returns a page whose cells each mix all sources in another way, with texts that grow when they are
// escaped.
func worstPage() Page {
	random := rand.New(rand.NewPCG(5, 6))
	sources := []Chunk{{Kind: seed.InPlace}, {Kind: seed.Copy}, {Kind: seed.Zero}, {Kind: seed.Delta}, {Kind: seed.Fetch}}
	for i := range seedClasses {
		sources = append(sources, Chunk{Kind: seed.Local, Seed: i})
	}
	var chunks []Chunk
	for range maxCells {
		random.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
		left := int64(minCell)
		for _, c := range sources[1:] {
			c.Size = 1 + random.Int64N(minCell/int64(classes))
			left -= c.Size
			chunks = append(chunks, c)
		}
		sources[0].Size = left
		chunks = append(chunks, sources[0])
	}
	p := newPage(chunks...)
	p.Title = strings.Repeat(`"`, 10_000)
	p.Seeds = slices.Repeat([]string{p.Title}, 70_000)
	return p
}

func TestRenderIsBounded(t *testing.T) {
	for name, p := range map[string]Page{"release": releasePage(), "terabyte": terabytePage(), "worst": worstPage()} {
		if n := len(render(t, p)); n >= MaxSize {
			t.Errorf("%s: the page has %d bytes, want less than %d", name, n, MaxSize)
		} else {
			t.Logf("%s: %d bytes", name, n)
		}
	}
}

func TestRenderEscapes(t *testing.T) {
	p := newPage(Chunk{Size: 10, Kind: seed.Local})
	p.Title, p.Seeds = hostile, []string{hostile}
	got := string(render(t, p))
	for text, want := range map[string]int{
		"<script": 1, "</script": 1, "<title": 1, "<style": 1, "<img": 0, "onerror='": 0,
	} {
		if n := strings.Count(got, text); n != want {
			t.Errorf("the page has %q %d times, want %d", text, n, want)
		}
	}
}

// TestRenderPolicy checks that the content security policy admits the script and the style of the page.
func TestRenderPolicy(t *testing.T) {
	got := string(render(t, releasePage()))
	for _, element := range []string{"script", "style"} {
		inline := regexp.MustCompile("(?s)<" + element + ">(.*)</" + element + ">").FindStringSubmatch(got)
		policy := regexp.MustCompile(element + "-src '([^']*)'").FindStringSubmatch(got)
		if inline == nil || policy == nil {
			t.Fatalf("found %v and %v for %s", inline != nil, policy != nil, element)
		}
		// An attribute has a plus sign as a character reference.
		if admitted := strings.ReplaceAll(policy[1], "&#43;", "+"); admitted != policyHash(inline[1]) {
			t.Errorf("the policy admits the %s %s, want %s", element, admitted, policyHash(inline[1]))
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	seq := func(c ...Chunk) iter.Seq[Chunk] { return slices.Values(c) }
	for name, p := range map[string]Page{
		"too short":      {Size: 10, Chunks: seq(Chunk{Size: 9, Kind: seed.InPlace})},
		"too long":       {Size: 10, Chunks: seq(Chunk{Size: 9, Kind: seed.InPlace}, Chunk{Size: 2, Kind: seed.InPlace})},
		"overflow":       {Size: 1<<63 - 1, Chunks: seq(Chunk{Size: 1<<63 - 1}, Chunk{Size: 1<<63 - 1})},
		"negative image": {Size: -1, Chunks: seq()},
		"empty chunk":    {Size: 10, Chunks: seq(Chunk{Size: 10, Kind: seed.InPlace}, Chunk{})},
		"negative chunk": {Size: 10, Chunks: seq(Chunk{Size: 11, Kind: seed.InPlace}, Chunk{Size: -1})},
		"kind":           {Size: 10, Chunks: seq(Chunk{Size: 10, Kind: seed.InPlace + 1})},
		"no such seed":   {Size: 10, Chunks: seq(Chunk{Size: 10, Kind: seed.Local, Seed: 1}), Seeds: []string{""}},
		"negative seed":  {Size: 10, Chunks: seq(Chunk{Size: 10, Kind: seed.Local, Seed: -1}), Seeds: []string{""}},
		"stored":         {Size: 10, Chunks: seq(Chunk{Size: 10, Kind: seed.Fetch, Stored: -1})},
	} {
		var b bytes.Buffer
		if err := Render(&b, p); err == nil || b.Len() > 0 {
			t.Errorf("%s: Render = %v and wrote %d bytes, want an error and nothing", name, err, b.Len())
		}
	}
}

func TestRenderReportsWriter(t *testing.T) {
	full := errors.New("full")
	if err := Render(failing{full}, releasePage()); !errors.Is(err, full) {
		t.Errorf("Render = %v, want %v", err, full)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestRenderSame(t *testing.T) {
	if !bytes.Equal(render(t, releasePage()), render(t, releasePage())) {
		t.Error("Render of one image writes two different pages")
	}
}
