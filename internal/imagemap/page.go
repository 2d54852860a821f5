package imagemap

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the parts of the page
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

// view is the page in the words of its template.
type view struct {
	Style                 template.CSS
	Script                template.JS
	StyleHash, ScriptHash string
	Title                 string
	Figures               []figure
	Sources               []source
	Downloads             []download
	Map                   chart
	Bar                   []shape
	BarView               string // the part of the drawing that is seen, as in SVG's viewBox
}

// figure is a number in large type.
type figure struct{ Name, Value, Note string }

// source is a row of the table of totals.
type source struct {
	Class                     class
	Name, Size, Share, Chunks string
}

// download is a row of the table of the largest ones.
type download struct {
	First, Last                        int64 // cells
	Offset, Byte, Size, Chunks, Stored string
}

// chart is the map.
type chart struct {
	Shapes                 []shape
	Grid                   string
	Labels                 []label
	Columns, Width, Height int    // of a row in cells, of a cell in units of the drawing
	View                   string // as BarView
	Cells                  string // for the script
	Bytes, CellBytes       int64
	Count, OneCell         string
}

// label tells the offset of a row of the map.
type label struct {
	Y    int
	Text string
}

// write renders v. The page is whole before its first byte is written.
func write(w io.Writer, v view) error {
	t := template.Must(template.New("page").Parse(pageHTML))
	var page bytes.Buffer
	if err := t.Execute(&page, v); err != nil {
		return err
	}
	_, err := page.WriteTo(w)
	return err
}

// hash is the source by which a content security policy admits text.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
