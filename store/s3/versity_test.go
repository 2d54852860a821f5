package s3_test

import (
	"errors"
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

// TestMain removes the keys, regions and endpoints of the environment.
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
	if testing.Short() {
		t.Skip("the suite runs over plain HTTP")
	}
	server := storetest.S3(t, storetest.S3Options{Domain: "s3.example.com"})
	useKeys(t, server)
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		location := "s3+http://s3.example.com/" + newBucket(t, server) + "?lookup=dns"
		return openBucket(t, location, s3.Options{}.DialTo(server.Host))
	})
}

func TestVersityTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("the suite runs over plain HTTP")
	}
	server := storetest.S3(t, storetest.S3Options{TLS: true})
	useKeys(t, server)
	t.Setenv("AWS_CA_BUNDLE", server.CA)
	storetest.TestBucket(t, func(t *testing.T) store.Bucket {
		return openBucket(t, server.Location(newBucket(t, server), ""), s3.Options{})
	})
}

// TestVersityKeys: denied access differs from absence, and new keys replace revoked ones.
func TestVersityKeys(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	name := newBucket(t, server)
	useKeys(t, server)
	root := openBucket(t, server.Location(name, ""), s3.Options{})
	if err := root.Write(t.Context(), "x", []byte("data")); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"reader", "reader-2", "nobody"} {
		server.User(t, user, user+"-secret")
	}
	server.Do(t, "PUT", "/"+name+"?policy", fmt.Appendf(nil, `{"Version": "2012-10-17", "Statement": [{
		"Effect": "Allow", "Principal": {"AWS": ["reader", "reader-2"]}, "Action": ["s3:GetObject", "s3:ListBucket"],
		"Resource": ["arn:aws:s3:::%[1]s", "arn:aws:s3:::%[1]s/*"]}]}`, name))
	path := filepath.Join(t.TempDir(), "credentials")
	location := server.Location(name, "?profile=p")

	profile(t, path, "nobody", "nobody-secret")
	nobody := openBucket(t, location, s3.Options{})
	checkAll(t, nobody, store.ErrDenied)

	profile(t, path, "reader", "reader-secret")
	reader := openBucket(t, location, s3.Options{})
	checkReads(t, reader)
	for what, err := range map[string]error{
		"Write": reader.Write(t.Context(), "x", nil), "Create": reader.Create(t.Context(), "new", nil),
	} {
		if !errors.Is(err, store.ErrDenied) {
			t.Errorf("%s by a reader = %v, want ErrDenied", what, err)
		}
	}

	server.Admin(t, "delete-user", "--access", "reader")
	if _, err := reader.Read(t.Context(), "x", nil, 10); !errors.Is(err, store.ErrDenied) {
		t.Errorf("Read by a deleted user = %v, want ErrDenied", err)
	}
	profile(t, path, "reader-2", "reader-2-secret")
	checkReads(t, reader)

	profile(t, path, "reader-2", "wrong")
	checkAll(t, openBucket(t, location, s3.Options{}), store.ErrDenied)
}

// checkReads checks the calls that a reader may make in a bucket with one object, x.
func checkReads(t *testing.T, b *s3.Bucket) {
	t.Helper()
	if got, err := b.Read(t.Context(), "x", nil, 10); err != nil || string(got) != "data" {
		t.Errorf("Read = %q, %v", got, err)
	}
	if _, err := b.Read(t.Context(), "absent", nil, 10); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read = %v, want ErrNotFound", err)
	}
	if _, err := b.Stat(t.Context(), "absent"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Stat = %v, want ErrNotFound", err)
	}
	for o, err := range b.List(t.Context(), "") {
		if o.Name != "x" || err != nil {
			t.Errorf("List yields %v, %v", o, err)
		}
	}
}

// checkAll checks that every call fails with want alone, for present and absent names.
func checkAll(t *testing.T, b *s3.Bucket, want error) {
	t.Helper()
	for _, name := range []string{"x", "absent"} {
		_, err := b.Read(t.Context(), name, nil, 10)
		checkClass(t, err, want)
		_, err = b.Stat(t.Context(), name)
		checkClass(t, err, want)
		checkClass(t, b.Write(t.Context(), name, nil), want)
		checkClass(t, b.Create(t.Context(), name, nil), want)
	}
	for _, err := range b.List(t.Context(), "") {
		checkClass(t, err, want)
	}
}

// TestVersityNoBucket: a missing bucket is not an empty one.
func TestVersityNoBucket(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	useKeys(t, server)
	checkAll(t, openBucket(t, server.Location("mistyped/p", ""), s3.Options{}), s3.ErrNoBucket)
}

// TestVersityPages: a listing of more than one page, below a store's prefix, is complete.
func TestVersityPages(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	useKeys(t, server)
	name := newBucket(t, server)
	want := map[string]bool{}
	for i := range 2345 {
		object := fmt.Sprintf("%04d/%d é+%%", i%7, i)
		path := filepath.Join(server.Dir, name, "p", object)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
		want[object] = true
	}
	for o, err := range openBucket(t, server.Location(name+"/p", ""), s3.Options{}).List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if !want[o.Name] || o.Size != 1 {
			t.Errorf("List yields %v, which was not put or came before", o)
		}
		delete(want, o.Name)
	}
	if len(want) > 0 {
		t.Errorf("List lacks %d objects", len(want))
	}
}

// TestUnknownAuthority: a server with an unknown certificate gets no request, and the error is not
// retried.
func TestUnknownAuthority(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{TLS: true})
	useKeys(t, server)
	_, err := openBucket(t, server.Location("bucket", ""), s3.Options{}).Read(t.Context(), "x", nil, 10)
	checkClass(t, err, nil)
	t.Setenv("AWS_CA_BUNDLE", filepath.Join(t.TempDir(), "absent"))
	l, _ := s3.Parse("s3://bucket")
	if _, err := s3.New(l, s3.Options{}); err == nil {
		t.Error("New with a CA bundle that is not there succeeded")
	}
}

var buckets atomic.Int64

// newBucket creates a bucket with a new name.
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
