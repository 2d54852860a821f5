package s3

import (
	"encoding/xml"
	"errors"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"cairn/store"
)

// FuzzAnswer: the error for any answer is one line of text. It reports absence only for an answer
// that states absence as S3 does.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"<Error><Code>NoSuchKey</Code><Message>gone</Message><Region>eu-west-1</Region></Error>", "<html>", "",
		"<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>p/a%20b</Key><Size>3</Size></Contents></ListBucketResult>",
		"<Error><Code>\x1b[31m</Code>", "<a><a><a>",
	} {
		f.Add(404, "404 Not Found", seed)
	}
	b := &Bucket{location: Location{Bucket: "bucket", Prefix: "p"}}
	f.Fuzz(func(t *testing.T, status int, line, body string) {
		answer := &http.Response{StatusCode: status, Status: line, Header: http.Header{}, Request: &http.Request{Method: "GET"}}
		r := readRefusal(answer, []byte(body))
		text := r.storeError().Error()
		if strings.ContainsAny(text, "\x00\n\r\x1b\u009b") || !utf8.ValidString(text) || len(text) > 1000 {
			t.Errorf("the words of %q are %q", body, text)
		}
		if errors.Is(r.storeError(), store.ErrNotFound) && (status != 404 || r.code != "NoSuchKey") {
			t.Errorf("%d with %q is absence", status, body)
		}
		if r.region != "" && !regionPattern.MatchString(r.region) {
			t.Errorf("the region is %q", r.region)
		}
		var p page
		if xml.Unmarshal([]byte(body), &p) != nil {
			return
		}
		for _, c := range p.Contents {
			o, ok, err := b.objectOf(c.Key, c.Size, "", p.EncodingType)
			if ok && (err != nil || store.CheckName(o.Name) != nil || o.Size < 0) {
				t.Errorf("a listing yields %v, %v", o, err)
			}
		}
	})
}
