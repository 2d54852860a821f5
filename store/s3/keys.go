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
	keyPatience = 5 * time.Second  // with who hands out keys
	renewPause  = 10 * time.Second // between renewals that nobody asked for in words
)

// keys are the credentials that requests are signed with. They are looked for in the order of sources, kept
// until they expire or are refused, and looked for again then.
type keys struct {
	sources []source
	client  *http.Client

	turn    chan struct{} // has one element, which is held while the fields below are used
	held    credentials.Value
	from    credentials.Provider // what held came from; nil when there are none
	known   bool                 // held is what the sources said
	renewed time.Time            // when they were asked again, and said the same
}

// source is a place where keys may be.
type source struct {
	name     string
	provider credentials.Provider
	must     bool // somebody named it: not to find keys there is an error
}

// newKeys looks where AWS's own tools do. A profile that a location names goes before the environment; one that
// AWS_PROFILE names does not. Keys of the machine it runs on are only asked for when they are for AWS.
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

// keyClient asks for keys. Those of the machine itself are never asked for through a proxy.
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

// get is the keys to use now; those of nobody when there are none.
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
		return k.held, nil // they are renewed long before their end, so that this may fail
	}
	return k.held, err
}

// renew looks again after the server refused used, and says whether others were found. If the refusal may have had
// other reasons it is not done each time.
func (k *keys) renew(ctx context.Context, used credentials.Value, certain bool) (changed bool, err error) {
	done, err := k.begin(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	if !same(k.held, used) {
		return true, nil // another request was faster
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

// begin waits for the turn of this caller.
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

// expired says that keys with an end are near it.
func (k *keys) expired() bool {
	return k.from != nil && !k.held.Expiration.IsZero() && k.from.IsExpired()
}

// look asks the sources in order. One that gave keys with an end has more of them: when it fails, nobody's keys are
// not what takes their place.
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
	return errors.New(printable(err.Error())) // it may quote an answer
}
