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

	mutex   chan struct{} // has one element while unlocked; guards the fields below
	value   credentials.Value
	from    credentials.Provider // the source of value; nil if there are no keys
	known   bool                 // value is valid: the sources were read
	renewed time.Time            // the last renewal that found the same keys
}

// source is a place that may hold keys.
type source struct {
	name     string
	provider credentials.Provider
	required bool // the user named it, so missing keys are an error
}

// newKeys returns keys with the sources of AWS's own tools. A profile named by the location
// precedes the environment; one named by AWS_PROFILE follows it. The keys of the machine itself are
// used only for AWS.
func newKeys(profile string, atAWS bool) *keys {
	file := &credentials.FileAWSCredentials{Profile: profile}
	k := &keys{mutex: make(chan struct{}, 1), client: keyClient()}
	k.mutex <- struct{}{}
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
// serve the machine's own keys, without a proxy. It follows no redirect: its requests may contain a
// token, and a server elsewhere must not reach these addresses through it.
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
	return &http.Client{Transport: t, Timeout: 2 * keyPatience, CheckRedirect: refuseRedirect}
}

// current returns the current keys, or anonymous ones if no source has any.
func (k *keys) current(ctx context.Context) (credentials.Value, error) {
	unlock, err := k.lock(ctx)
	if err != nil {
		return credentials.Value{}, err
	}
	defer unlock()
	if k.known && !k.isExpired() {
		return k.value, nil
	}
	err = k.readSources(ctx)
	if err != nil && k.known && time.Now().Before(k.value.Expiration) {
		return k.value, nil // renewal starts long before the keys end, so it may fail
	}
	return k.value, err
}

// renewRefused reads the sources again after the server refused used, and reports whether it found
// other keys. If the refusal is not certain to be about keys, it reads them at most once per
// renewPause.
func (k *keys) renewRefused(ctx context.Context, used credentials.Value, certain bool) (changed bool, err error) {
	unlock, err := k.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	if !sameKeys(k.value, used) {
		return true, nil // another request has renewed them
	}
	if !certain && time.Since(k.renewed) < renewPause {
		return false, nil
	}
	if err := k.readSources(ctx); err != nil {
		return false, err
	}
	changed = !sameKeys(k.value, used)
	if !changed {
		k.renewed = time.Now()
	}
	return changed, nil
}

// lock locks k and returns the function that unlocks it.
func (k *keys) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case <-k.mutex:
		return func() { k.mutex <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func sameKeys(a, b credentials.Value) bool {
	return a.AccessKeyID == b.AccessKeyID && a.SecretAccessKey == b.SecretAccessKey && a.SessionToken == b.SessionToken
}

// isExpired reports whether the keys have an expiry that is near or past.
func (k *keys) isExpired() bool {
	return k.from != nil && !k.value.Expiration.IsZero() && k.from.IsExpired()
}

// readSources reads the sources in order. If the source of the current, expiring keys fails, it
// returns that error and does not fall back to anonymous requests.
func (k *keys) readSources(ctx context.Context) error {
	for _, s := range k.sources {
		v, err := s.provider.RetrieveWithCredContext(&credentials.CredContext{Client: k.client, Context: ctx})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			k.value, k.from, k.known = v, s.provider, true
			return nil
		}
		if s.required || err != nil && s.provider == k.from && !k.value.Expiration.IsZero() {
			return fmt.Errorf("looking for keys in %s: %w", s.name, lookupError(err))
		}
	}
	k.value, k.from, k.known = credentials.Value{SignerType: credentials.SignatureAnonymous}, nil, true
	return nil
}

func lookupError(err error) error {
	if err == nil {
		return errors.New("there are none")
	}
	return errors.New(toPrintable(err.Error())) // the error may quote an answer
}
