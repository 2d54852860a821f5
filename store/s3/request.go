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

// call describes a request. It can be sent again.
type call struct {
	method string
	key    string // "" means the bucket itself
	query  url.Values
	header http.Header
	data   []byte // the body of a PUT
	sum    string // the SHA-256 that the header claims for data; "" means the correct one
}

// use reads a successful answer.
type use func(in transfer.Incoming) error

// pass holds the keys and the region that a request is signed with.
type pass struct {
	keys   credentials.Value
	region string
}

// do sends a call and passes a successful answer to use. It renews refused keys and corrects a
// wrong region, each at most once.
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

// explain returns the refusal's error, with a note if the request was sent without keys.
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

// move stores the region that the server names for the bucket, and reports whether it differs from
// used.
func (b *Bucket) move(no *refusal, used string) bool {
	if b.endpoint.fixed || no.region == "" || no.region == used {
		return false
	}
	b.learnt.Store(&no.region)
	return true
}

// renew looks for other keys if the refusal may be about the ones used, and reports whether it
// found any.
func (b *Bucket) renew(ctx context.Context, no *refusal, used credentials.Value) bool {
	may, sure := no.refusesKeys()
	if used.AccessKeyID == "" {
		may = may || errors.Is(no.err(), store.ErrDenied)
	}
	if !may {
		return false
	}
	changed, err := b.keys.renew(ctx, used, sure)
	return changed && err == nil // the refusal is the better message
}

// attempt sends a call once. An answer that reports a failure becomes a *refusal.
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
		body, _ := in.Body(nil, largestRefusal) // an unreadable body is ignored
		return readRefusal(answer, body)
	}
	return use(in)
}

// request returns the unsigned request for a call.
func (b *Bucket) request(ctx context.Context, c call, region string) (*http.Request, error) {
	u := b.endpoint.address(b.location.Bucket, c.key, region)
	u.RawQuery = strings.ReplaceAll(c.query.Encode(), "+", "%20") // the form that is signed
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

// classify converts a transport error. Only errors that a retry may resolve become
// store.ErrUnavailable.
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
