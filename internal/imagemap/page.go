package imagemap

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the variables below
	"encoding/base64"
	"html/template"
	"io"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// pageView is the input of the template.
type pageView struct {
	Style                 template.CSS
	Script                template.JS
	StyleHash, ScriptHash string
	Title                 string
	Figures               []figure
	Sources               []source
	Downloads             []download
	Map                   chart
	Bar                   []shape
	BarView               string // the visible part of the drawing, as in SVG's viewBox
}

// figure is a number in large type.
type figure struct{ Name, Value, Note string }

// source is a row of the table of totals.
type source struct {
	Class                     class
	Name, Size, Share, Chunks string
}

// download is a row of the table of the largest downloads.
type download struct {
	First, Last                        int64 // cells
	Offset, Byte, Size, Chunks, Stored string
}

// chart is the map.
type chart struct {
	Shapes                 []shape
	Grid                   string
	Labels                 []label
	Columns, Width, Height int    // cells in a row; size of a cell in units of the drawing
	View                   string // as BarView
	Cells                  string // for page.js, from encodeCells
	Bytes, CellBytes       int64
	Count, OneCell         string
}

// label is the offset of a row of the map.
type label struct {
	Y    int
	Text string
}

// writePage renders v. It executes the whole template before it writes the first byte.
func writePage(w io.Writer, v pageView) error {
	t := template.Must(template.New("page").Parse(pageHTML))
	var page bytes.Buffer
	if err := t.Execute(&page, v); err != nil {
		return err
	}
	_, err := page.WriteTo(w)
	return err
}

// policyHash returns the source expression that admits text in a content security policy.
func policyHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
