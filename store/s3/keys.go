package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"cairn/internal/transfer"
)

const (
	keyPatience = 5 * time.Second  // limits each step of a request for keys
	renewPause  = 10 * time.Second // between renewals after refusals without a stated reason
)

// keys holds the credentials that sign requests. It tries the sources in order, and again when the
// keys expire or are refused.
type keys struct {
	sources []source
	client  *http.Client

	turn    chan struct{} // a lock with one element, received to use the fields below
	held    credentials.Value
	from    credentials.Provider // the source of held; nil if there are no keys
	known   bool                 // held is valid: the sources were read
	renewed time.Time            // the last renewal that found the same keys
}

// source is a place that may hold keys.
type source struct {
	name     string
	provider credentials.Provider
	must     bool // the user named it, so missing keys are an error
}

// newKeys returns keys with the sources of AWS's own tools. A profile named by the location
// precedes the environment; one named by AWS_PROFILE follows it. The keys of the machine itself are
// used only for AWS.
func newKeys(profile string, atAWS bool) *keys {
	file := &credentials.FileAWSCredentials{Profile: profile}
	k := &keys{turn: make(chan struct{}, 1), client: keyClient()}
	k.turn <- struct{}{}
	if profile != "" {
		k.sources = []source{{"profile " + profile, file, true}}
		return k
	}
	k.sources = []source{{name: "the environment", provider: &credentials.EnvAWS{}}}
	iam := &credentials.IAM{Client: k.client}
	if isSet("AWS_WEB_IDENTITY_TOKEN_FILE") {
		k.sources = append(k.sources, source{"the web identity", iam, true})
	}
	k.sources = append(k.sources, source{"the shared credentials files", file, isSet("AWS_PROFILE")})
	switch {
	case isSet("AWS_WEB_IDENTITY_TOKEN_FILE"):
	case isSet("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"), isSet("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
		k.sources = append(k.sources, source{"the container", iam, true})
	case atAWS && os.Getenv("AWS_EC2_METADATA_DISABLED") != "true":
		k.sources = append(k.sources, source{name: "the machine", provider: iam})
	}
	return k
}

func isSet(variable string) bool { return os.Getenv(variable) != "" }

// keyClient returns a client that fetches keys. It reaches link-local and loopback addresses, which
// serve the machine's own keys, without a proxy.
func keyClient() *http.Client {
	t := transfer.Transport(4, keyPatience, nil)
	t.DialContext = (&net.Dialer{Timeout: time.Second}).DialContext
	proxy := t.Proxy
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		ip := net.ParseIP(r.URL.Hostname())
		if ip != nil && (ip.IsLinkLocalUnicast() || ip.IsLoopback()) {
			return nil, nil
		}
		return proxy(r)
	}
	return &http.Client{Transport: t, Timeout: 2 * keyPatience}
}

// get returns the current keys, or anonymous ones if no source has any.
func (k *keys) get(ctx context.Context) (credentials.Value, error) {
	done, err := k.begin(ctx)
	if err != nil {
		return credentials.Value{}, err
	}
	defer done()
	if k.known && !k.expired() {
		return k.held, nil
	}
	err = k.look(ctx)
	if err != nil && k.known && time.Now().Before(k.held.Expiration) {
		return k.held, nil // renewal starts long before the keys end, so it may fail
	}
	return k.held, err
}

// renew reads the sources again after the server refused used, and reports whether it found other
// keys. If the refusal is not certain to be about keys, renew runs at most once per renewPause.
func (k *keys) renew(ctx context.Context, used credentials.Value, certain bool) (changed bool, err error) {
	done, err := k.begin(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	if !same(k.held, used) {
		return true, nil // another request has renewed them
	}
	if !certain && time.Since(k.renewed) < renewPause {
		return false, nil
	}
	if err := k.look(ctx); err != nil {
		return false, err
	}
	changed = !same(k.held, used)
	if !changed {
		k.renewed = time.Now()
	}
	return changed, nil
}

// begin locks k and returns the function that unlocks it.
func (k *keys) begin(ctx context.Context) (done func(), err error) {
	select {
	case <-k.turn:
		return func() { k.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func same(a, b credentials.Value) bool {
	return a.AccessKeyID == b.AccessKeyID && a.SecretAccessKey == b.SecretAccessKey && a.SessionToken == b.SessionToken
}

// expired reports whether the keys have an expiry that is near or past.
func (k *keys) expired() bool {
	return k.from != nil && !k.held.Expiration.IsZero() && k.from.IsExpired()
}

// look reads the sources in order. If the source of the current, expiring keys fails, look returns
// its error and does not fall back to anonymous requests.
func (k *keys) look(ctx context.Context) error {
	for _, s := range k.sources {
		v, err := s.provider.RetrieveWithCredContext(&credentials.CredContext{Client: k.client, Context: ctx})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			k.held, k.from, k.known = v, s.provider, true
			return nil
		}
		if s.must || err != nil && s.provider == k.from && !k.held.Expiration.IsZero() {
			return fmt.Errorf("looking for keys in %s: %w", s.name, noKeys(err))
		}
	}
	k.held, k.from, k.known = credentials.Value{SignerType: credentials.SignatureAnonymous}, nil, true
	return nil
}

func noKeys(err error) error {
	if err == nil {
		return errors.New("there are none")
	}
	return errors.New(printable(err.Error())) // the error may quote an answer
}
