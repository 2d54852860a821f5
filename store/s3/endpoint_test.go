package s3

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// TestResolve: the server of a location, and the URL and region of its requests.
func TestResolve(t *testing.T) {
	for _, c := range []struct {
		location string
		settings awsSettings
		region   string
		address  string
	}{
		{"s3://bucket/p", awsSettings{}, "us-east-1", "https://bucket.s3.us-east-1.amazonaws.com/p/x"},
		{"s3://bucket", awsSettings{region: "eu-west-1"}, "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com/x"},
		{"s3://bucket?region=cn-north-1", awsSettings{region: "eu-west-1"}, "cn-north-1", "https://bucket.s3.cn-north-1.amazonaws.com.cn/x"},
		{"s3://a.bucket", awsSettings{}, "us-east-1", "https://s3.us-east-1.amazonaws.com/a.bucket/x"},
		{"s3://Bucket", awsSettings{}, "us-east-1", "https://s3.us-east-1.amazonaws.com/Bucket/x"},
		{"s3://bucket?lookup=path", awsSettings{}, "us-east-1", "https://s3.us-east-1.amazonaws.com/bucket/x"},
		{"s3://bucket/p", awsSettings{endpoint: "http://h:9/"}, "us-east-1", "http://h:9/bucket/p/x"},
		{"s3://bucket/p?lookup=dns", awsSettings{endpoint: "https://h"}, "us-east-1", "https://bucket.h/p/x"},
		{"s3+http://h:9/bucket/p", awsSettings{endpoint: "https://other"}, "us-east-1", "http://h:9/bucket/p/x"},
		{"s3+https://h/bucket?lookup=dns", awsSettings{}, "us-east-1", "https://bucket.h/x"},
		{"s3+https://s3.eu-north-1.amazonaws.com/bucket", awsSettings{region: "x"}, "eu-north-1",
			"https://bucket.s3.eu-north-1.amazonaws.com/x"},
		{"s3+https://s3.amazonaws.com/bucket", awsSettings{region: "eu-west-2"}, "eu-west-2", "https://bucket.s3.amazonaws.com/x"},
		{"s3+https://amazonaws.com.example.org/bucket", awsSettings{}, "us-east-1", "https://amazonaws.com.example.org/bucket/x"},
	} {
		l, err := Parse(c.location)
		if err != nil {
			t.Fatal(err)
		}
		e, err := resolveEndpoint(l, c.settings)
		if err != nil {
			t.Errorf("resolve(%s): %v", c.location, err)
			continue
		}
		if got := e.objectURL(l.Bucket, l.keyOf("x"), e.region).String(); got != c.address || e.region != c.region {
			t.Errorf("resolve(%s, %+v) asks %s in %s, want %s in %s", c.location, c.settings, got, e.region, c.address, c.region)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	l := Location{Bucket: "bucket"}
	for _, settings := range []awsSettings{
		{region: "evil.example.com/"}, {endpoint: "h:9"}, {endpoint: "ftp://h"}, {endpoint: "http://user:hush@h"},
		{endpoint: "http://h/path"}, {endpoint: "http://h?x"}, {endpoint: "http://"}, {endpoint: "http://h:x"},
	} {
		if e, err := resolveEndpoint(l, settings); err == nil {
			t.Errorf("resolve(%+v) = %+v", settings, e)
		}
	}
}

// TestAddressEncoding: the URL encodes a name in the same way as its signature.
func TestAddressEncoding(t *testing.T) {
	e := endpoint{scheme: "http", host: "h"}
	for name, want := range map[string]string{
		"a b":       "http://h/bucket/a%20b",
		"a+b":       "http://h/bucket/a%2Bb",
		"a%2Fb":     "http://h/bucket/a%252Fb",
		"é#?":       "http://h/bucket/%C3%A9%23%3F",
		"..x/(y)":   "http://h/bucket/..x/%28y%29",
		"a:b@c=d&~": "http://h/bucket/a%3Ab%40c%3Dd%26~",
		"":          "http://h/bucket",
	} {
		if got := e.objectURL("bucket", name, "").String(); got != want {
			t.Errorf("address of %q = %s, want %s", name, got, want)
		}
	}
}

// TestSharedFiles: the environment sets region and endpoint, or else the profile does.
func TestSharedFiles(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config")
	text := "[default]\nregion = r-default\n[profile p]\nregion = r-p\nendpoint_url = http://h-p\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, variable := range []string{"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"} {
		t.Setenv(variable, "")
	}
	t.Setenv("AWS_CONFIG_FILE", config)
	check := func(profile string, want awsSettings) {
		t.Helper()
		if got, err := readSettings(profile); got != want || err != nil {
			t.Errorf("lookAround(%q) = %+v, %v, want %+v", profile, got, err, want)
		}
	}
	check("", awsSettings{"", "r-default"})
	check("p", awsSettings{"http://h-p", "r-p"})
	check("absent", awsSettings{})
	t.Setenv("AWS_PROFILE", "p")
	check("", awsSettings{"http://h-p", "r-p"})
	t.Setenv("AWS_DEFAULT_REGION", "r-2")
	t.Setenv("AWS_ENDPOINT_URL", "http://h-1")
	check("", awsSettings{"http://h-1", "r-2"})
	t.Setenv("AWS_REGION", "r-1")
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://h-2")
	check("", awsSettings{"http://h-2", "r-1"})
	t.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
	check("", awsSettings{"", "r-1"})
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "absent"))
	check("p", awsSettings{"", "r-1"})
}

// expiring provides keys that are due for renewal but cannot be renewed.
type expiring struct {
	credentials.Expiry
	asked int
	ends  time.Time
}

func (e *expiring) Retrieve() (credentials.Value, error) { return e.RetrieveWithCredContext(nil) }

func (e *expiring) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	if e.asked++; e.asked > 1 {
		return credentials.Value{}, errors.New("busy")
	}
	return credentials.Value{AccessKeyID: "id", SecretAccessKey: "s", Expiration: e.ends}, nil
}

// TestRenewalFails: keys that cannot be renewed are used until they expire, and not after that.
func TestRenewalFails(t *testing.T) {
	for lasts, good := range map[time.Duration]bool{time.Hour: true, -time.Second: false} {
		source := &expiring{ends: time.Now().Add(lasts)}
		k := newKeys("", false)
		k.sources = append(k.sources[:0], sourceOf(source))
		for n := range 3 {
			v, err := k.current(t.Context())
			if ok := err == nil && v.AccessKeyID == "id"; ok != (good || n == 0) {
				t.Errorf("get %d of keys that last %v = %q, %v", n, lasts, v.AccessKeyID, err)
			}
		}
		if source.asked != 3 {
			t.Errorf("the source was asked %d times, want each time", source.asked)
		}
	}
}

// TestRenewalFailsOnTheMachine: keys that cannot be renewed are kept, even if their source is
// optional.
func TestRenewalFailsOnTheMachine(t *testing.T) {
	k := newKeys("", false)
	k.sources = append(k.sources[:0], source{name: "the machine", provider: &expiring{ends: time.Now().Add(time.Hour)}})
	for n := range 3 {
		if v, err := k.current(t.Context()); err != nil || v.AccessKeyID != "id" {
			t.Errorf("get %d of keys that last an hour = %q, %v", n, v.AccessKeyID, err)
		}
	}
	if changed, err := k.renewRefused(t.Context(), k.value, true); changed || err == nil {
		t.Errorf("renew = %v, %v; want an error", changed, err)
	}
}

func sourceOf(p credentials.Provider) source { return source{"a test", p, true} }
