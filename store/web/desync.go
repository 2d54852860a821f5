package web

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"cairn/store"
)

// desync's chunk server has each chunk in one form, compressed or plain, as it was started. It calls a request for
// the other form a bad one (400) and says why on the page, which a HEAD does not have.

// ErrForm says that a server takes chunks in the other form only.
var ErrForm = errors.New("the server takes chunks in one form only")

var (
	errTakes       = [2]error{fmt.Errorf("%w: compressed (desync chunk-server)", ErrForm), fmt.Errorf("%w: plain (desync chunk-server -u)", ErrForm)}
	errNeitherForm = errors.New("the server has chunks neither compressed nor plain: are they encrypted (desync chunk-server)?")
)

// forms are the forms of chunks that the server was found not to have: plain at 0, compressed at 1.
type forms [2]atomic.Bool

func formOf(name string) (form int, is bool) {
	_, packed, is := store.ChunkObject(name)
	if packed {
		form = 1
	}
	return form, is
}

// have notes that the server answers for objects like this one.
func (f *forms) have(name string) {
	if form, is := formOf(name); is && f[form].Load() {
		f[form].Store(false)
	}
}

// lack notes that the server has no chunk of that form. That proves the absence of each, if it has the other form.
func (f *forms) lack(form int) error {
	f[form].Store(true)
	if f[1-form].Load() {
		return errNeitherForm
	}
	return store.ErrNotFound
}

// lacks reports what lack has said of objects like this one, or nil.
func (f *forms) lacks(name string) error {
	if form, is := formOf(name); is && f[form].Load() {
		return f.lack(form)
	}
	return nil
}

// pagesOfForm are what the pages of a 400 have about a chunk of the other form, before and since 2023. The last one stands
// for a plain chunk only: a compressed one gets it when the URL of the store has a path.
var pagesOfForm = [2][]string{
	{"invalid chunk extension, verify", "expected format '/<prefix>/<chunkid>.cacnk"},
	{"requested chunk with an unexpected file extension, this server expects", "compressed chunk requested from http chunk store serving uncompressed"},
}

// explainDesync finds what desync's servers say on the page of a bad request, or nil.
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
			return b.forms.lack(form)
		}
	}
	switch {
	case bytes.HasPrefix(page, []byte(pagesOfForm[0][0])): // of a compressed one
		return errNeitherForm
	case bytes.HasPrefix(page, []byte("expected format '/<prefix>/<chunkid>")):
		return errors.New("desync's chunk server has its chunks at the root of its URL: leave the path out")
	}
	return nil
}
