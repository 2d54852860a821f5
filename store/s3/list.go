package s3

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"cairn/internal/transfer"
	"cairn/store"
)

const (
	pageNames   = 1000    // names requested per page
	largestPage = 8 << 20 // limits the bytes of an answer; 1000 names of 1024 bytes, each byte as %XX, are 3 MiB
)

// page is the answer to ListObjectsV2.
type page struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
	Contents              []struct {
		Key          string
		Size         int64
		LastModified string
	}
}

// List implements store.Lister. It requests 1000 names at a time.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if err := b.listPages(ctx, prefix, yield); err != nil {
			yield(store.Object{}, fmt.Errorf("listing %s: %w", b, err))
		}
	}
}

func (b *Bucket) listPages(ctx context.Context, prefix string, yield func(store.Object, error) bool) error {
	var space []byte
	for token := ""; ; {
		var p page
		err := b.retry.Do(ctx, func() (err error) {
			p, space, err = b.requestPage(ctx, prefix, token, space[:0])
			return err
		})
		if err != nil {
			return err
		}
		for _, c := range p.Contents {
			o, ok, err := b.objectOf(c.Key, c.Size, prefix, p.EncodingType)
			if err != nil || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			// A server may send another form, or none. Then the time is unknown.
			o.Modified, _ = time.Parse(time.RFC3339, c.LastModified)
			if ok && !yield(o, nil) {
				return nil
			}
		}
		if !p.IsTruncated {
			return nil
		}
		if p.NextContinuationToken == "" || p.NextContinuationToken == token {
			return errors.New("the listing has more pages, but the server sends no new continuation token")
		}
		token = p.NextContinuationToken
	}
}

// requestPage requests the names after token.
func (b *Bucket) requestPage(ctx context.Context, prefix, token string, space []byte) (p page, body []byte, err error) {
	query := url.Values{
		"list-type":     {"2"},
		"encoding-type": {"url"}, // XML cannot represent all characters
		"max-keys":      {strconv.Itoa(pageNames)},
		"prefix":        {b.keyPrefix(prefix)},
	}
	if token != "" {
		query.Set("continuation-token", token)
	}
	err = b.doCall(ctx, call{method: http.MethodGet, query: query}, func(in transfer.Incoming) error {
		body, err = in.Body(space, largestPage)
		if err != nil {
			return err
		}
		if err := xml.Unmarshal(body, &p); err != nil {
			return cmp.Or(transfer.WebPage(in.Answer), fmt.Errorf("the answer is not a listing: %s", toPrintable(err.Error())))
		}
		return nil
	})
	return p, body, err
}

// keyPrefix returns the beginning of the S3 keys of all objects with a prefix.
func (b *Bucket) keyPrefix(prefix string) string {
	if b.location.Prefix == "" {
		return prefix
	}
	return b.location.Prefix + "/" + prefix
}

// objectOf converts an entry of a listing. ok is false for an entry that has no valid name here,
// such as a directory marker.
func (b *Bucket) objectOf(key string, size int64, prefix, encoding string) (o store.Object, ok bool, err error) {
	if encoding == "url" {
		if key, err = url.QueryUnescape(key); err != nil {
			return o, false, errors.New("the listing has a name that cannot be decoded")
		}
	}
	if !strings.HasPrefix(key, b.keyPrefix(prefix)) {
		return o, false, errors.New("the listing has a name without the requested prefix")
	}
	name := key
	if b.location.Prefix != "" {
		name = key[len(b.location.Prefix)+1:]
	}
	if size < 0 {
		return o, false, fmt.Errorf("the listing has a size of %d bytes", size)
	}
	return store.Object{Name: name, Size: size}, store.CheckName(name) == nil && name == path.Clean(name), nil
}
