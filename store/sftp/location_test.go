package sftp

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLocation(t *testing.T) {
	for text, want := range map[string]struct {
		at         Location
		dir, shown string
	}{
		"sftp://host/srv/images":           {Location{"", "host", "", "/srv/images"}, "/srv/images", "sftp://host/srv/images"},
		"sftp://me@host:2222/srv/":         {Location{"me", "host", "2222", "/srv/"}, "/srv", "sftp://me@host:2222/srv"},
		"sftp://host":                      {Location{"", "host", "", ""}, "/", "sftp://host"},
		"sftp://host/":                     {Location{"", "host", "", "/"}, "/", "sftp://host"},
		"sftp://host/~":                    {Location{"", "host", "", "/~"}, ".", "sftp://host/~"},
		"sftp://host/~/":                   {Location{"", "host", "", "/~/"}, ".", "sftp://host/~"},
		"sftp://host/~/images/v2":          {Location{"", "host", "", "/~/images/v2"}, "./images/v2", "sftp://host/~/images/v2"},
		"sftp://[fe80::1%25eth0]:22/a%20b": {Location{"", "fe80::1%eth0", "22", "/a b"}, "/a b", "sftp://[fe80::1%25eth0]:22/a%20b"},
		"sftp://DOM%5Cme@build_host.x/p":   {Location{`DOM\me`, "build_host.x", "", "/p"}, "/p", "sftp://DOM%5Cme@build_host.x/p"},
	} {
		if got, err := Parse(text); got != want.at || err != nil || got.dir() != want.dir || got.String() != want.shown {
			t.Errorf("Parse(%q) = %+v, %v: %q in %q; want %+v", text, got, err, got, got.dir(), want)
		}
	}
}

// TestSplitAndJoin: Join is the inverse of Split.
func TestSplitAndJoin(t *testing.T) {
	for text, want := range map[string]string{
		"sftp://host/x.caibx":         "sftp://host x.caibx",
		"sftp://me@host/a%20b/x%25":   "sftp://me@host/a%20b x%",
		"sftp://host:2/~/images/x":    "sftp://host:2/~/images x",
		"sftp://host/~/x":             "sftp://host/~ x",
		"sftp://[::1]:22/srv/x.caibx": "sftp://[::1]:22/srv x.caibx",
	} {
		l, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		dir, name, err := l.Split()
		if got := dir.String() + " " + name; got != want || err != nil {
			t.Errorf("Split of %q = %q, %v; want %q", text, got, err, want)
		}
		if got := dir.Join(name); got != l {
			t.Errorf("%q is joined again as %v", text, got)
		}
	}
	for _, text := range []string{"sftp://host", "sftp://host/", "sftp://host/srv/", "sftp://host/.."} {
		if l, err := Parse(text); err != nil {
			t.Fatal(err)
		} else if dir, name, err := l.Split(); err == nil {
			t.Errorf("Split of %q = %v, %q", text, dir, name)
		}
	}
}

// hostile lists locations that ssh could misread, or a shell that its configuration passes them to.
var hostile = []string{
	"sftp://-oProxyCommand=touch%20x/path", "sftp://-oProxyCommand=true/path", "sftp://-oProxyCommand=true:22/path",
	"sftp://-l@host/path", "sftp://%2DoProxyCommand@host/path", "sftp://-/p", "sftp://@-x/p",
	"sftp://a%0ab@host/p", "sftp://$(id)@host/p", "sftp://a%60id%60@host/p", "sftp://x;y@host/p", "sftp://x y@host/p",
	"sftp://host;id/p", "sftp://ho$st/p", "sftp://ho`id`st/p", "sftp://ho%0ast/p", "sftp://a'b/p", "sftp:///path",
	"sftp://me%5C@host/p", "sftp://@host/p", "sftp://host:x/p", "sftp://host:-1/p", "sftp://host:22:22/p",
	"sftp://host/p?hush", "sftp://host/p#hush", "sftp://host/a%00b", "http://host/p", "//host/p", "host:/p", "",
	"sftp://me:hush@host/p", "sftp://:hush@host/p",
}

func TestLocationRefused(t *testing.T) {
	for _, text := range hostile {
		if got, err := Parse(text); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("Parse(%q) = %+v, %v; want an error that tells no secret", text, got, err)
		}
	}
}

// TestArguments: options end before the host, and ssh_config supplies the missing parts of the
// location.
func TestArguments(t *testing.T) {
	at, err := Parse("sftp://host/p")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Patience: time.Minute}
	got := sshArgs(at, o)
	if tail := got[len(got)-4:]; !slices.Equal(tail, []string{"-s", "--", "host", "sftp"}) {
		t.Errorf("arguments end with %q", tail)
	}
	for _, option := range []string{"-l", "-p", "-F"} {
		if slices.Contains(got, option) {
			t.Errorf("arguments %q have %s", got, option)
		}
	}
	at.user, at.port, o.Config = "me", "22", "file"
	got = sshArgs(at, o)
	for _, want := range []string{"-F file -l me -p 22 -s -- host sftp", "-oBatchMode=yes", "-oConnectTimeout=60"} {
		if !strings.Contains(strings.Join(got, " "), want) {
			t.Errorf("arguments %q lack %q", got, want)
		}
	}
}

// FuzzLocation: ssh cannot misread an accepted location, and String shows no secret.
func FuzzLocation(f *testing.F) {
	for _, seed := range append(slices.Clone(hostile), "sftp://me@host:22/p", "sftp://[::1]/p") {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(at.String())
		if err != nil || again.String() != at.String() || again.dir() != at.dir() {
			t.Errorf("%q is shown as %q, which is %+v, %v, not %+v", text, at, again, err, at)
		}
		args := sshArgs(at, Options{Patience: time.Second})
		host := slices.Index(args, "--") + 1
		if !strings.HasPrefix(args[0], "-o") || args[host] != at.host || at.host[0] == '-' || strings.HasPrefix(at.user, "-") ||
			strings.ContainsAny(at.user+at.host+at.port, "\x00\n\r;&|`$'\"<>(){} \t") {
			t.Errorf("%q has ssh run as %q", text, args)
		}
	})
}
