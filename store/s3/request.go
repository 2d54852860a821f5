package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/signer"

	"cairn/internal/transfer"
	"cairn/store"
)

// call is what to ask. It can be asked again.
type call struct {
	method string
	key    string // "" is the bucket itself
	query  url.Values
	header http.Header
	data   []byte // to put
	sum    string // that the data is said to have; "" is its own
}

// use takes what it needs of a good answer.
type use func(in transfer.Incoming) error

// pass is what a request is signed with.
type pass struct {
	keys   credentials.Value
	region string
}

// do makes a call and hands a good answer to use. Keys that are refused are looked for again, once; a region that is
// wrong is put right, once.
func (b *Bucket) do(ctx context.Context, c call, use use) error {
	for renewed, moved := false, false; ; {
		p, err := b.pass(ctx)
		if err != nil {
			return err
		}
		err = b.attempt(ctx, c, p, use)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		no, refused := errors.AsType[*refusal](err)
		switch {
		case !refused:
			b.seen.CompareAndSwap(false, err == nil)
			return err
		case !moved && b.move(no, p.region):
			moved = true
		case !renewed && b.renew(ctx, no, p.keys):
			renewed = true
		default:
			b.seen.CompareAndSwap(false, no.code == "NoSuchKey")
			return explain(no, p.keys)
		}
	}
}

// explain is the refusal as callers see it, with what they may not think of.
func explain(no *refusal, used credentials.Value) error {
	err := no.err()
	if errors.Is(err, store.ErrDenied) && used.AccessKeyID == "" {
		return fmt.Errorf("%w (asked without keys, since none were found)", err)
	}
	return err
}

func (b *Bucket) pass(ctx context.Context) (p pass, err error) {
	p.region = b.endpoint.region
	if learnt := b.learnt.Load(); learnt != nil {
		p.region = *learnt
	}
	p.keys, err = b.keys.get(ctx)
	return p, err
}

// move takes the server's word for the region that the bucket is in, and says whether it is another.
func (b *Bucket) move(no *refusal, used string) bool {
	if b.endpoint.fixed || no.region == "" || no.region == used {
		return false
	}
	b.learnt.Store(&no.region)
	return true
}

// renew looks for other keys if the refusal may be about those used, and says whether there are any.
func (b *Bucket) renew(ctx context.Context, no *refusal, used credentials.Value) bool {
	may, sure := no.refusesKeys()
	if used.AccessKeyID == "" {
		may = may || errors.Is(no.err(), store.ErrDenied)
	}
	if !may {
		return false
	}
	changed, err := b.keys.renew(ctx, used, sure)
	return changed && err == nil // what was refused is the better message
}

// attempt makes a call once. What is not an answer to it is a *refusal.
func (b *Bucket) attempt(ctx context.Context, c call, p pass, use use) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := b.request(ctx, c, p.region)
	if err != nil {
		return err
	}
	defer transfer.Send(request, c.data, b.patience, cancel)()
	request = signer.SignV4(*request, p.keys.AccessKeyID, p.keys.SecretAccessKey, p.keys.SessionToken, p.region)
	answer, err := b.client.Do(request)
	if err != nil {
		return classify(ctx, err)
	}
	defer answer.Body.Close()
	in := transfer.Incoming{Answer: answer, Patience: b.patience, Abort: cancel}
	removed := c.method == http.MethodDelete && answer.StatusCode == http.StatusNoContent
	if answer.StatusCode != http.StatusOK && !removed {
		body, _ := in.Body(nil, largestRefusal) // what cannot be read says nothing
		return readRefusal(answer, body)
	}
	return use(in)
}

// request is a call that is not signed yet.
func (b *Bucket) request(ctx context.Context, c call, region string) (*http.Request, error) {
	u := b.endpoint.address(b.location.Bucket, c.key, region)
	u.RawQuery = strings.ReplaceAll(c.query.Encode(), "+", "%20") // as it is signed
	request, err := http.NewRequestWithContext(ctx, c.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, c.header)
	request.Header.Set("User-Agent", "cairn")
	sum := c.sum
	if sum == "" {
		sum = hash(c.data)
	}
	request.Header.Set("X-Amz-Content-Sha256", sum)
	return request, nil
}

// classify tells what a later attempt may mend from what it cannot.
func classify(ctx context.Context, err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return err
	}
	return transfer.Unavailable(err)
}
