package transfer

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"cairn/store"
)

// ErrPart is wrapped by errors about an answer with other bytes than the requested range.
var ErrPart = errors.New("the server sends another part than the requested one")

// RangeField returns the value of the header field Range for n bytes from offset off on.
func RangeField(off, n int64) string { return fmt.Sprintf("bytes=%d-%d", off, off+n-1) }

// StreamRange is Stream for an answer to a request with RangeField. A 206 must hold the requested
// bytes, less those after the object's end; anything else is ErrPart. An answer of any other status
// is the whole object.
func (in Incoming) StreamRange(off, n int64, use func(store.Part, io.Reader) error) error {
	part := store.Part{Size: in.Answer.ContentLength, Whole: true}
	b, err := in.openBody(math.MaxInt64)
	if in.Answer.StatusCode == http.StatusPartialContent {
		part = store.Part{Offset: off}
		part.Size, b.length, err = partSize(in.Answer, off, n)
	}
	if err == nil {
		err = use(part, b)
	}
	return b.explainError(err)
}

// partSize checks that a 206 holds the requested range. It returns the size of the object, or -1 if
// the server does not tell, and the length of the part. Only the last part of an object may be
// shorter than n.
func partSize(answer *http.Response, off, n int64) (size, length int64, err error) {
	field := answer.Header.Get("Content-Range")
	first, last, size, ok := parseContentRange(field)
	switch {
	case !ok: // none, or more than one part (multipart/byteranges)
		return 0, 0, fmt.Errorf("%w: 206 with Content-Range %.60q", ErrPart, field)
	case first != off || last >= off+n || last-first+1 < n && last != size-1:
		return 0, 0, fmt.Errorf("%w: %.60q for %q", ErrPart, field, RangeField(off, n))
	}
	length = last - first + 1
	if answer.ContentLength >= 0 && answer.ContentLength != length {
		return 0, 0, fmt.Errorf("%w: %d bytes with Content-Range %.60q", ErrPart, answer.ContentLength, field)
	}
	return size, length, nil
}

// parseContentRange parses the field Content-Range of a 206 (RFC 9110 §14.4). An unknown size is -1.
func parseContentRange(field string) (first, last, size int64, ok bool) {
	unit, rest, _ := strings.Cut(field, " ")
	span, total, _ := strings.Cut(rest, "/")
	start, end, _ := strings.Cut(span, "-")
	size = -1
	numbers := []struct {
		text string
		to   *int64
	}{{start, &first}, {end, &last}, {total, &size}}
	if total == "*" {
		numbers = numbers[:2]
	}
	for _, n := range numbers {
		v, err := strconv.ParseUint(n.text, 10, 63)
		if err != nil {
			return 0, 0, 0, false
		}
		*n.to = int64(v)
	}
	ok = strings.EqualFold(unit, "bytes") && first <= last && (size < 0 || last < size)
	return first, last, size, ok
}
