package transfer_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

// FuzzPart: a 206 is refused, or its reader returns exactly the requested bytes, or fewer at the
// object's end.
func FuzzPart(f *testing.F) {
	f.Add("bytes 10-19/100", int64(10), int64(10), int64(10), 10)
	f.Add("bytes 10-12/13", int64(10), int64(10), int64(-1), 3)
	f.Add("bytes 10-19/*", int64(10), int64(10), int64(10), 9)
	f.Add("bytes 0-9223372036854775806/9223372036854775807", int64(0), int64(1)<<62, int64(-1), 30)
	f.Fuzz(func(t *testing.T, field string, off, n, length int64, sent int) {
		if store.CheckRange(off, n) != nil || length < -1 || sent < 0 || sent > 1<<20 {
			t.Skip()
		}
		request, _ := http.NewRequestWithContext(t.Context(), "GET", "http://h/", nil)
		in := transfer.Incoming{Patience: time.Minute, Abort: func(error) {}, Answer: &http.Response{
			Request: request, StatusCode: http.StatusPartialContent, Header: http.Header{"Content-Range": {field}},
			ContentLength: length, TransferEncoding: []string{"chunked"},
			Body: io.NopCloser(strings.NewReader(strings.Repeat("x", sent))),
		}}
		err := in.StreamRange(off, n, func(part store.Part, body io.Reader) error {
			got, err := io.ReadAll(body)
			if part.Offset != off || part.Whole || part.Size >= 0 && part.Size <= off {
				t.Errorf("%q for %d bytes from %d on: part %+v", field, n, off, part)
			}
			want := n
			if part.Size >= 0 {
				want = min(n, part.Size-off)
			}
			if int64(len(got)) > want || length < 0 && err == nil && int64(len(got)) < want {
				t.Errorf("%q for %d bytes from %d on: %d bytes, %v", field, n, off, len(got), err)
			}
			return err
		})
		if err != nil && !errors.Is(err, transfer.ErrPart) && !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%q: %v", field, err)
		}
	})
}
