package s3_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/store"
	"cairn/store/s3"
	"cairn/store/storetest"
)

// TestMain: the tests have no keys, regions and endpoints but their own.
func TestMain(m *testing.M) {
	for _, line := range os.Environ() {
		if name, _, _ := strings.Cut(line, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Exit(m.Run())
}

func TestVersity(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	useKeys(t, server)
	n := 0
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		n++
		return openBucket(t, server.Location(newBucket(t, server), fmt.Sprintf("/a store+%%25/%d/", n)), s3.Options{})
	})
}

func TestVersityVirtualHost(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{Domain: "s3.example.com"})
	useKeys(t, server)
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		location := "s3+http://s3.example.com/" + newBucket(t, server) + "?lookup=dns"
		return openBucket(t, location, s3.Options{}.DialTo(server.Host))
	})
}

func TestVersityTLS(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{TLS: true})
	useKeys(t, server)
	t.Setenv("AWS_CA_BUNDLE", server.CA)
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		return openBucket(t, server.Location(newBucket(t, server), ""), s3.Options{})
	})
}

var buckets atomic.Int64

// newBucket makes a bucket of a new name.
func newBucket(t *testing.T, server *storetest.S3Server) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", buckets.Add(1))
	server.Bucket(t, name)
	return name
}

func useKeys(t *testing.T, server *storetest.S3Server) {
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
}

// profile writes a shared credentials file with one profile, p.
func profile(t *testing.T, path, access, secret string) {
	t.Helper()
	text := fmt.Sprintf("[p]\naws_access_key_id = %s\naws_secret_access_key = %s\n", access, secret)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Clean(path))
}

func openBucket(t *testing.T, location string, o s3.Options) *s3.Bucket {
	t.Helper()
	l, err := s3.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3.New(l, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
