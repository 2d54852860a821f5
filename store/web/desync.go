package web

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"cairn/store"
)

// desync's chunk server serves all chunks in one form, compressed or plain, chosen when it starts.
// It answers a request for the other form with 400 and gives the reason in the body, which an
// answer to HEAD does not have.

// ErrForm reports that a server accepts chunks in the other form only.
var ErrForm = errors.New("the server takes chunks in one form only")

var (
	errTakes       = [2]error{fmt.Errorf("%w: compressed (desync chunk-server)", ErrForm), fmt.Errorf("%w: plain (desync chunk-server -u)", ErrForm)}
	errNeitherForm = errors.New("the server has chunks neither compressed nor plain: are they encrypted (desync chunk-server)?")
)

// forms records the chunk forms that the server was found not to have: plain at 0, compressed at 1.
type forms [2]atomic.Bool

func formOf(name string) (form int, is bool) {
	_, packed, is := store.ChunkObject(name)
	if packed {
		form = 1
	}
	return form, is
}

// markPresent records that the server has the form of the named object.
func (f *forms) markPresent(name string) {
	if form, is := formOf(name); is && f[form].Load() {
		f[form].Store(false)
	}
}

// markLacking records that the server has no chunks of a form, and returns the error for a request
// of that form. The error is store.ErrNotFound unless the server lacks the other form too.
func (f *forms) markLacking(form int) error {
	f[form].Store(true)
	if f[1-form].Load() {
		return errNeitherForm
	}
	return store.ErrNotFound
}

// lackingError returns the error of markLacking if the form of the named object is known to be
// missing, else nil.
func (f *forms) lackingError(name string) error {
	if form, is := formOf(name); is && f[form].Load() {
		return f.markLacking(form)
	}
	return nil
}

// pagesOfForm holds the beginnings of the 400 pages for a chunk of the other form, before and since
// 2023. The last one identifies a plain chunk only: a compressed chunk also gets it if the URL of
// the store has a path.
var pagesOfForm = [2][]string{
	{"invalid chunk extension, verify", "expected format '/<prefix>/<chunkid>.cacnk"},
	{"requested chunk with an unexpected file extension, this server expects", "compressed chunk requested from http chunk store serving uncompressed"},
}

// explainDesync returns the error for a 400 page of a desync server, or nil if it does not
// recognise the page.
func (b *Bucket) explainDesync(m message, page []byte) error {
	if bytes.HasPrefix(page, []byte("writing to upstream ")) || bytes.HasPrefix(page, []byte("upstream ")) {
		return fmt.Errorf("the server takes no uploads there (desync's has to be started with --writable): %w", errors.ErrUnsupported)
	}
	form, is := formOf(m.name)
	if !is {
		return nil
	}
	for _, phrase := range pagesOfForm[form] {
		switch {
		case !bytes.HasPrefix(page, []byte(phrase)):
		case m.method == http.MethodPut:
			return errTakes[form]
		default:
			return b.forms.markLacking(form)
		}
	}
	switch {
	case bytes.HasPrefix(page, []byte(pagesOfForm[0][0])): // the request was for a compressed chunk
		return errNeitherForm
	case bytes.HasPrefix(page, []byte("expected format '/<prefix>/<chunkid>")):
		return errors.New("desync's chunk server has its chunks at the root of its URL: leave the path out")
	}
	return nil
}
