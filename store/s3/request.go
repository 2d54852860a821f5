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

// useFunc reads a successful answer, and returns the error of the call.
type useFunc func(in transfer.Incoming) error

// signing holds the keys and the region that sign a request.
type signing struct {
	keys   credentials.Value
	region string
}

// doCall sends a call and passes a successful answer to use. It renews refused keys and corrects a
// wrong region, each at most once.
func (b *Bucket) doCall(ctx context.Context, c call, use useFunc) error {
	for renewed, moved := false, false; ; {
		p, err := b.currentSigning(ctx)
		if err != nil {
			return err
		}
		err = b.sendOnce(ctx, c, p, use)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		no, refused := errors.AsType[*refusal](err)
		switch {
		case !refused:
			b.bucketSeen.CompareAndSwap(false, err == nil)
			return err
		case !moved && b.adoptRegion(no, p.region):
			moved = true
		case !renewed && b.renewKeys(ctx, no, p.keys):
			renewed = true
		default:
			b.bucketSeen.CompareAndSwap(false, no.code == "NoSuchKey")
			return refusalError(no, p.keys)
		}
	}
}

// refusalError returns the refusal's error, with a note if the request was sent without keys.
func refusalError(no *refusal, used credentials.Value) error {
	err := no.storeError()
	if errors.Is(err, store.ErrDenied) && used.AccessKeyID == "" {
		return fmt.Errorf("%w (requested without keys, since none were found)", err)
	}
	return err
}

func (b *Bucket) currentSigning(ctx context.Context) (p signing, err error) {
	p.region = b.endpoint.region
	if learnt := b.serverRegion.Load(); learnt != nil {
		p.region = *learnt
	}
	p.keys, err = b.keys.current(ctx)
	return p, err
}

// adoptRegion stores the region that the server names for the bucket, and reports whether it
// differs from used.
func (b *Bucket) adoptRegion(no *refusal, used string) bool {
	if b.endpoint.regionFixed || no.region == "" || no.region == used {
		return false
	}
	b.serverRegion.Store(&no.region)
	return true
}

// renewKeys looks for other keys if the refusal may be about the ones used, and reports whether it
// found any.
func (b *Bucket) renewKeys(ctx context.Context, no *refusal, used credentials.Value) bool {
	may, sure := no.refusesKeys()
	if used.AccessKeyID == "" {
		may = may || errors.Is(no.storeError(), store.ErrDenied)
	}
	if !may {
		return false
	}
	changed, err := b.keys.renewRefused(ctx, used, sure)
	return changed && err == nil // the refusal is the better message
}

// sendOnce sends a call once. An answer that reports a failure becomes a *refusal.
func (b *Bucket) sendOnce(ctx context.Context, c call, p signing, use useFunc) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := b.newRequest(ctx, c, p.region)
	if err != nil {
		return err
	}
	defer transfer.Send(request, c.data, b.patience, cancel)()
	request = signer.SignV4(*request, p.keys.AccessKeyID, p.keys.SecretAccessKey, p.keys.SessionToken, p.region)
	answer, err := b.client.Do(request)
	if err != nil {
		return transportError(ctx, err)
	}
	defer answer.Body.Close()
	in := transfer.Incoming{Answer: answer, Patience: b.patience, Abort: cancel}
	removed := c.method == http.MethodDelete && answer.StatusCode == http.StatusNoContent
	partial := c.header.Get("Range") != "" && answer.StatusCode == http.StatusPartialContent
	if answer.StatusCode != http.StatusOK && !removed && !partial {
		body, _ := in.Body(nil, largestRefusal) // an unreadable body is ignored
		return readRefusal(answer, body)
	}
	return use(in)
}

// newRequest returns the unsigned request for a call.
func (b *Bucket) newRequest(ctx context.Context, c call, region string) (*http.Request, error) {
	u := b.endpoint.objectURL(b.location.Bucket, c.key, region)
	u.RawQuery = strings.ReplaceAll(c.query.Encode(), "+", "%20") // the form that is signed
	request, err := http.NewRequestWithContext(ctx, c.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, c.header)
	request.Header.Set("User-Agent", "cairn")
	sum := c.sum
	if sum == "" {
		sum = hexSHA256(c.data)
	}
	request.Header.Set("X-Amz-Content-Sha256", sum)
	return request, nil
}

// transportError converts a transport error. Only errors that a retry may resolve become
// store.ErrUnavailable.
func transportError(ctx context.Context, err error) error {
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
