package netlab

import (
	"fmt"
	"strings"
	"testing"
)

// scanAll returns the methods that are found in text, in pieces of n bytes.
func scanAll(text string, n int) string {
	var found []string
	s := scanner{found: func(method string) { found = append(found, method) }}
	for p := []byte(text); len(p) > 0; {
		s.scan(p[:min(n, len(p))])
		p = p[min(n, len(p)):]
	}
	return strings.Join(found, " ")
}

func TestScanner(t *testing.T) {
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	put := func(body string) string {
		return fmt.Sprintf("PUT /x HTTP/1.1\r\ncontent-LENGTH:%d\r\n\r\n%s", len(body), body)
	}
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{get, "GET"},
		{get[:len(get)-1], ""},
		{strings.Repeat(get, 3), "GET GET GET"},
		{put(get+get) + get, "PUT GET"},
		{put("") + get, "PUT GET"},
		{"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n" + get, "PUT"},
		{"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nGET /\r\n0\r\n\r\n" + get, "PUT"},
		{"\x16\x03\x01" + get, ""},
		{"SSH-2.0-x\r\n\r\n" + get, ""},
		{"GET /\r\n\r\n" + get, ""},
		{strings.Repeat("X", 2*largestHead), ""},
	} {
		for _, n := range []int{1, 2, 3, 7, 1000, 1 << 20} {
			if got := scanAll(c.text, n); got != c.want {
				t.Errorf("in pieces of %d, %.60q holds %q, want %q", n, c.text, got, c.want)
			}
		}
	}
}

// FuzzScanner: the sizes of the pieces do not change the result.
func FuzzScanner(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcHEAD / HTTP/1.1\r\n\r\n", 3)
	f.Fuzz(func(t *testing.T, text string, n int) {
		if n < 1 {
			return
		}
		if got, want := scanAll(text, n), scanAll(text, len(text)+1); got != want {
			t.Errorf("in pieces of %d: %q, in one: %q", n, got, want)
		}
	})
}
