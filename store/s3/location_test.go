package s3_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/store/s3"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]s3.Location{
		"s3://bucket":                 {Bucket: "bucket"},
		"s3://bucket/":                {Bucket: "bucket"},
		"s3://my.bucket/a/b/":         {Bucket: "my.bucket", Prefix: "a/b", Slash: true},
		"s3://bucket/a%20b/c%2Bd+é":   {Bucket: "bucket", Prefix: "a b/c+d+é"},
		"s3://Legacy_Bucket/x":        {Bucket: "Legacy_Bucket", Prefix: "x"},
		"s3+http://h:9000/bucket":     {Scheme: "http", Host: "h:9000", Bucket: "bucket"},
		"s3+https://[::1]:1/bucket/p": {Scheme: "https", Host: "[::1]:1", Bucket: "bucket", Prefix: "p"},
		"s3+https://h/bucket/a/b?region=eu-west-1&lookup=dns&profile=a%20b": {
			Scheme: "https", Host: "h", Bucket: "bucket", Prefix: "a/b",
			Region: "eu-west-1", Lookup: s3.LookupDNS, Profile: "a b"},
		"s3://bucket?lookup=auto": {Bucket: "bucket"},
		"s3://bucket?lookup=path": {Bucket: "bucket", Lookup: s3.LookupPath},
	} {
		got, err := s3.Parse(text)
		if err != nil {
			t.Errorf("Parse(%q): %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", text, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "bucket", "s3:bucket", "s3:///x", "s3://ab", "s3://-bucket", "s3://bucket:80/x", "s3://b%2Fucket/x",
		"s3://bucket//x", "s3://bucket/a//b", "s3://bucket/../x", "s3://bucket/a/./b", "s3://bucket/%00", "s3://bucket/%ff",
		"s3://bucket/x#hush", "s3://bucket/x#", "s3://key:hush@bucket/x", "s3+https://key:hush@host/bucket", "s3://:hush@bucket",
		"s3+http://host", "s3+http://host/", "s3+http:///bucket", "s3+http://host//bucket/x", "s3+ftp://host/bucket", "http://host/bucket",
		"s3+http://a..b/bucket", "s3+http://ho st/bucket?hush",
		"s3://bucket?region=", "s3://bucket?region=hush.example.com", "s3://bucket?lookup=", "s3://bucket?lookup=hush",
		"s3://bucket?profile=", "s3://bucket?profile=hush%0A", "s3://bucket?secret=hush", "s3://bucket?region=a&region=b",
		"s3://bucket?%zz=hush", "s3://bucket?region=a;b",
	} {
		if got, err := s3.Parse(text); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("Parse(%q) = %+v, %v, want an error without secrets", text, got, err)
		}
	}
}

// TestKeysInLocation: the error for keys in a location says where they belong.
func TestKeysInLocation(t *testing.T) {
	if _, err := s3.Parse("s3+https://key:hush@host/bucket"); err == nil || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("Parse = %v, want a hint", err)
	}
}

func TestSplitAndJoin(t *testing.T) {
	for text, want := range map[string]string{
		"s3://bucket/x.caibx":                    "s3://bucket x.caibx s3://bucket/y",
		"s3://bucket/a%20b/x%2By?region=r-1":     "s3://bucket/a%20b?region=r-1 x+y s3://bucket/a%20b/y?region=r-1",
		"s3+http://h/bucket/x?lookup=path":       "s3+http://h/bucket?lookup=path x s3+http://h/bucket/y?lookup=path",
		"s3+http://h/bucket/a/b/%23?profile=%26": "s3+http://h/bucket/a/b?profile=%26 # s3+http://h/bucket/a/b/y?profile=%26",
	} {
		dir, name, err := parse(t, text).Split()
		if err != nil {
			t.Fatalf("Split of %q: %v", text, err)
		}
		if got := fmt.Sprint(dir, " ", name, " ", dir.Join("y")); got != want {
			t.Errorf("Split and Join of %q = %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"s3://bucket", "s3://bucket/", "s3://bucket/a/", "s3+http://h/bucket"} {
		if dir, name, err := parse(t, text).Split(); err == nil {
			t.Errorf("Split of %q = %v, %q", text, dir, name)
		}
	}
}

func parse(t *testing.T, text string) s3.Location {
	t.Helper()
	l, err := s3.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// FuzzLocation: Parse of an accepted location's String returns the same location.
func FuzzLocation(f *testing.F) {
	for _, seed := range []string{"s3://bucket/a%2Fb", "s3+https://[::1]:9/bucket/x?lookup=dns&region=x", "s3://u:p@bucket",
		"s3://bucket/a b?profile=%20", "s3://bucket/?lookup=auto", "s3+http://host:/bucket/%25"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := s3.Parse(text)
		if err != nil {
			return
		}
		again, err := s3.Parse(l.String())
		if err != nil || again.Join("x") != l.Join("x") {
			t.Errorf("Parse(%q) = %+v, but its String %q = %+v, %v", text, l, l, again, err)
		}
		if dir, name, err := l.Split(); err == nil && dir.Join(name) != l {
			t.Errorf("Split of %q = %v, %q, which lead to %v", text, dir, name, dir.Join(name))
		}
	})
}
