package dropin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestTranslate: a command line of casync or desync becomes one of cairn, or is refused.
func TestTranslate(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("CASYNC_STORE", "")
	t.Setenv("CASYNC_VERBOSE", "")
	t.Setenv("HOME", "")
	for _, name := range []string{"v1", "v1.caibx", "slot", "k=v", "seeds/a", "seeds/a.caibx", "seeds/deep/b", "seeds/deep/b.caibx", "seeds/c.caibx"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("v1.caibx", "link"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ line, want string }{
		// as RAUC calls them
		{"casync extract --seed slot --store /b.castr --seed-output=no m/x.caibx /dev/sdb1",
			"assemble --seed=slot --store=/b.castr --progress=none m/x.caibx /dev/sdb1"},
		{"casync extract --store http://h/s --seed-output=no m/x.caibx -", "assemble --store=http://h/s --progress=none m/x.caibx -"},
		{"casync make x.caibx rootfs --store s.castr --chunk-size=64000", "make --chunk-size=64000B --store=s.castr --progress=none --gc-root=managed x.caibx rootfs"},
		{"desync extract --store s.castr m/x.caibx /dev/sdb1", "assemble --store=s.castr m/x.caibx /dev/sdb1"},
		{"desync make --store s.castr x.caibx rootfs", "make --store=s.castr --gc-root=managed x.caibx rootfs"},
		{"desync extract --store s --seed v1.caibx --in-place --error-retry 20 x.caibx /dev/sdb1",
			"assemble --seed=v1=v1.caibx --store=s --patience=1m45s x.caibx /dev/sdb1"},

		// getopt_long: prefixes, any order, --
		{"casync --sto=s --seed slot extract x.caibx --seed-o no /dev/sdb1", "assemble --seed=slot --store=s --progress=none x.caibx /dev/sdb1"},
		{"casync extract --stor s -- x.caibx -y", "assemble --store=s --progress=none x.caibx ./-y"},
		{"casync extract -vldebug x.caibx y", "assemble --store=default.castr x.caibx y"},
		{"casync extract --ex 1 x.caibx y", "unknown flag: --ex"},
		{"casync extract --seed-output=maybe x.caibx y", "want yes or no"},
		{"casync extract --store", "flag needs an argument"},

		// casync's defaults
		{"casync make d/x.caibx", "make --store=d/default.castr --progress=none --gc-root=managed d/x.caibx -"},
		{"casync make", "make --store=default.castr --progress=none --gc-root=managed - -"},
		{"casync extract https://h/d/x.caibx?t=1 y", "assemble --store=https://h/d/default.castr --progress=none https://h/d/x.caibx?t=1 y"},
		{"casync extract file:///d/a%20b.caibx y --store=file://localhost/s --extra-store /t --extra-store u|v",
			`assemble --store=/s --store=/t --store=u\|v --progress=none /d/a b.caibx y`},
		{"casync extract --store=me@host:/srv/s x.caibx y", "assemble --store=sftp://me@host/srv/s --progress=none x.caibx y"},
		{"casync extract --store=host:s x.caibx y", "assemble --store=sftp://host/~/s --progress=none x.caibx y"},
		{"casync extract --rate-limit-bps=1.5M x.caibx y", "assemble --store=default.castr --rate-limit=1572864 --progress=none x.caibx y"},
		{"casync make --chunk-size=16K:64K:256K --digest=sha256 x.caibx y",
			"make --chunk-size=16384B:65536B:262144B --digest=sha256 --store=default.castr --progress=none --gc-root=managed x.caibx y"},
		{"casync extract --seed=v1.caibx --seed=k=v x.caibx a#b", `assemble --seed=v1=v1.caibx --seed=k=v --store=default.castr --progress=none x.caibx a\#b`},
		{"casync extract --seed=none=x x.caibx PARTLABEL=a", `assemble --seed=none\=x --store=default.castr --progress=none x.caibx ./PARTLABEL=a`},

		{"casync make x.caidx seeds", "is an archive of a directory tree"},
		{"casync make x.caibx seeds", "is a directory"},
		{"casync extract --what=archive x y", "--what=archive is not supported"},
		{"casync extract x.catar y", "is an archive of a directory tree"},
		{"casync extract x.caibx y z", "a path within the image"},
		{"casync make --compression=xz x.caibx y", "leave it out"},
		{"casync make --cache=c x.caibx y", "--cache is not supported"},
		{"casync extract --cache=c x.caibx y", "assemble --store=default.castr --progress=none x.caibx y"},
		{"casync gc x.caibx", "remove the chunks that no index needs"},
		{"casync digest v1", ""},
		{"casync digest --store=s x.caibx", "cat --store=s x.caibx"},
		{"casync digest seeds", "not for directory trees"},
		{"casync digest x.catar", "not for directory trees"},
		{"casync frob", `unknown command "frob"`},
		{"casync", "no command is given"},

		// pflag: any order, lists, --
		{"desync --verbose --digest sha256 make -m 8:32:128 - f", "make --chunk-size=8:32:128 --digest=sha256 --index-only - f"},
		{"desync make x.caibx f -n 4", "make --index-only --jobs=4 x.caibx f"},
		{"desync extract -s a,b -s c|d -c cache -n 7 x.caibx y",
			"assemble --store=a --store=b --store=c|d --cache=cache --cache-limit=0 --fetches=7 x.caibx y"},
		{"desync extract -s ssh://h/s --seed i.caibx:a=b x.caibx y", `assemble --seed=a\=b=i.caibx --store=sftp://h/s x.caibx y`},
		{"desync extract -s s --seed slot x.caibx y", "assemble --seed=slot --store=s x.caibx y"},
		{"desync extract --print-stats -s s x.caibx y", "assemble --store=s --desync-stats x.caibx y"},
		{"desync make --print-stats x.caibx y", "make --index-only --desync-stats x.caibx y"},
		{"desync extract -s s --seed-dir seeds seeds/deep/b.caibx y", "assemble --seed=seeds/a=seeds/a.caibx --store=s seeds/deep/b.caibx y"},
		{"desync extract -s s --seed absent x.caibx y", "want INDEX.caibx or INDEX:BLOB"},
		{"desync extract -s s x y z", "want 'desync extract INDEX OUTPUT'"},
		{"desync extract -s s x x", "are the same file"},
		{"desync extract -t -s https://h/s x.caibx y", "--ca-cert FILE"},
		{"desync extract -t -s s x.caibx y", "assemble --store=s x.caibx y"},
		{"desync extract -s gs://b/s x.caibx y", "storage.googleapis.com"},
		{"desync extract -s s -c http://h/ x.caibx y", "a cache is a directory"},
		{"desync make -m 64 x f", "want MIN:AVG:MAX"},
		{"desync make --seed v1.caibx x f", "unknown flag: --seed"},
		{"desync tar -i -s s x.caidx d", "not for directory trees"},
		{"desync extract -s s --skip-invalid-seeds --regenerate-invalid-seeds x y", "exclude each other"},
		{"desync extract -s s --seed v1.caibx --regenerate-invalid-seeds x y", "assemble --seed=v1 --store=s x y"},
		{"desync extract -s s --seed v1.caibx:slot:later -- x -y", "assemble --seed=slot=v1.caibx --store=s x ./-y"},
		{"desync extract -s s -b 1m -e 2 x y", "assemble --store=s --patience=3m0s x y"},
		{"desync extract -s s -e 0 x y", "assemble --store=s --patience=1s x y"},
		{"desync extract -s s -e many x y", "want a number"},
		{"desync cat -s s -o 1024 -l 2048 x.caibx", "cat --offset=1024 --store=s --length=2048 x.caibx"},
		{"desync cat -s s -l 0 x.caibx out", "assemble --store=s x.caibx out"},
		{"desync cat -s s -l 1 x.caibx out", "cat --store=s --length=1 x.caibx"},
		{"desync info -s s -f plain --seed https://h/x.caibx -c c --chunks-info f x.caibx",
			"desync-info --format=plain --seed=https://h/x.caibx --chunks-info=f --store=s --cache=c --cache-limit=0 x.caibx"},
		{"desync inspect-chunks -s s x.caibx out", "desync-inspect-chunks --store=s x.caibx out"},
		{"desync list-chunks -n 3 -e 4 x.caibx", "desync-list-chunks x.caibx"},
		{"desync chunk -m 1:4:16 -S 512 --digest sha256 f", "desync-chunk --start=512 --chunk-size=1:4:16 --digest=sha256 f"},
		{"desync chop -s s --ignore a.caibx --ignore b.caibx x.caibx f", "store add --base=a.caibx --base=b.caibx --gc-root=managed s x.caibx f"},
		{"desync chop x.caibx f", "want 'desync chop"},
		{"desync cache -s a -s b|c -c d x.caibx y.caibx", "store copy --no-delta --gc-root=managed a|b|c d x.caibx y.caibx"},
		{"desync cache -s a x.caibx", "want 'desync cache"},
		{"desync cache -s a -c b --ignore x.caibx y.caibx", "store copy --except=x.caibx --no-delta --gc-root=managed a b y.caibx"},
		{"desync verify -s s -n 3", "store verify --state= --jobs=3 s"},
		{"desync verify -r --store s", "store verify --remove-damaged --state= s"},
		{"desync verify-index x.caibx y", "verify x.caibx y"},
		{"desync --config absent extract -s s x y", "no such file"},

		// one file under two names
		{"casync extract v1.caibx link", "are the same file"},
		{"casync make --what=blob-index v1 v1", "are the same file"},
		{"casync make v1", "v1 does not end in .caibx"},
		{"casync make --what=blob-index x v1", "make --store=default.castr --progress=none --gc-root=managed x v1"},
		{"desync extract -s s v1.caibx ./v1.caibx", "are the same file"},
		{"desync make v1 ./v1", "are the same file"},
		{"desync cat -s s -l 1 v1.caibx ./v1.caibx", "are the same file"},
		{"desync inspect-chunks v1.caibx link", "are the same file"},

		// seeds and stores that are left out
		{"casync extract --seed ./slot --seed v1 --store s x slot", "assemble --seed=v1 --store=s --progress=none x slot"},
		{"desync extract --seed v1.caibx:slot -s s x ./slot", "assemble --store=s x ./slot"},
		{"casync extract --store none --extra-store seeds x y", "assemble --store=seeds --progress=none x y"},
		{"casync extract --store http://h/s --extra-store none x y", "assemble --store=http://h/s --progress=none x y"},
		{"casync extract --store none --extra-store neither x y", "assemble --store=none --store=neither --progress=none x y"},

		{"desync cat -s s x.caibx /dev/null", "cat --store=s x.caibx"},
		{"desync extract -s s -e 10000 -b 1h x y", "assemble --store=s --patience=10000h0m0s x y"},
		{"desync extract -s s -e 0 -b 1h x y", "assemble --store=s --patience=1s x y"},
		{"casync help exract", "unknown command"},
	} {
		args := strings.Fields(test.line)
		call, err := Translate(args[0], args[1:], "1.0")
		if err != nil {
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v, want %s", test.line, err, test.want)
			}
			continue
		}
		if got := strings.Join(call.Args, " "); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.line, got, test.want)
		}
	}
}

// TestNotes: an ignored flag is noted with the reason.
func TestNotes(t *testing.T) {
	call, err := Translate(Casync, []string{"extract", "-v", "--mkdir=no", "--chunk-size=1", "x.caibx", "y"}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--mkdir is ignored: it is about directory trees", "--chunk-size has no effect on casync extract"}
	if diff := cmp.Diff(want, call.Notes); diff != "" || !call.Verbose {
		t.Errorf("notes (-want +got):\n%s\nverbose: %v", diff, call.Verbose)
	}
}

// TestHelp: every form of a question for help and for the version has an answer.
func TestHelp(t *testing.T) {
	for _, line := range []string{"casync --help", "casync -h", "casync help", "casync make --help", "casync --version", "casync extract x --version",
		"desync --help", "desync -h", "desync help", "desync extract --help", "desync tar -h", "desync", "desync --version", "desync version"} {
		args := strings.Fields(line)
		call, err := Translate(args[0], args[1:], "1.0")
		if err != nil || call.Text == "" || call.Args != nil {
			t.Errorf("%s: %+v, %v", line, call, err)
		}
	}
}

// TestHelpOfCommand: the help of a command is the same in both forms.
func TestHelpOfCommand(t *testing.T) {
	for _, tool := range []string{Casync, Desync} {
		one, err1 := Translate(tool, []string{"help", "extract"}, "")
		other, err2 := Translate(tool, []string{"extract", "--help"}, "")
		if err1 != nil || err2 != nil || one.Text != other.Text {
			t.Errorf("%s: %q, %v and %q, %v", tool, one.Text, err1, other.Text, err2)
		}
	}
}

// TestDigestOfStream: make prints no digest of an image that cannot be read again.
func TestDigestOfStream(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(unix.Mkfifo("fifo", 0o600), os.WriteFile("file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]bool{"fifo": false, "-": false, "file": true} {
		call, err := Translate(Casync, []string{"make", "x.caibx", image}, "")
		if err != nil || (call.Digest != nil) != want {
			t.Errorf("%s: %+v, %v", image, call.Digest, err)
		}
	}
}

// TestTables: each flag is in a table once for each command, has one fate, and its commands exist.
func TestTables(t *testing.T) {
	for _, tool := range []*tool{&casync, &desync} {
		seen := map[string]bool{}
		for _, f := range tool.flags {
			fates := 0
			for _, is := range []bool{f.to != "", f.ignored, f.refused, f.handled} {
				if is {
					fates++
				}
			}
			if fates != 1 || f.fate() == "" {
				t.Errorf("%s --%s has %d fates: %q", tool.name, f.name, fates, f.fate())
			}
			for _, c := range tool.commands {
				if key := c.name + " --" + f.name; f.isOn(c.name) {
					if seen[key] {
						t.Errorf("%s %s is there twice", tool.name, key)
					}
					seen[key] = true
				}
			}
		}
	}
}

func TestParseCasyncSize(t *testing.T) {
	for text, want := range map[string]int64{
		"64000": 64000, "64K": 65536, "1.5M": 1572864, "1M 512K": 1572864, "2G": 2 << 30, "10B": 10,
		"": -1, "x": -1, "-1": -1, "1K 1M": -1, "64KiB": -1, "9E": -1,
	} {
		got, err := parseCasyncSize(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("parseCasyncSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}

// TestConfig: what desync's configuration says about the locations of a command line.
func TestConfig(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"S3_ACCESS_KEY", "S3_SECRET_KEY", "AWS_ACCESS_KEY_ID", "HOME"} {
		t.Setenv(name, "")
	}
	for _, test := range []struct {
		config, line, want string
		env                map[string]string
		headers            []Header
	}{
		{config: `{}`, line: "extract -s s x y", want: "assemble --store=s x y"},
		{config: `{"store-options": {"https://h/s*": {"client-cert": "c", "client-key": "k", "ca-cert": "a", "error-retry": 20, "skip-verify": true, "timeout": 5}}}`,
			line: "extract -s https://h/s1/ x y", want: "assemble --store=https://h/s1/ --ca-cert=a --client-cert=c --client-key=k --patience=1m45s x y"},
		{config: `{"store-options": {"https://h/s*": {"client-cert": "c", "ca-cert": "a", "error-retry": 20}}}`,
			line: "extract -s https://h/s1/ --ca-cert b -e 1 --client-cert= x y",
			want: "assemble --ca-cert=b --client-cert= --store=https://h/s1/ --patience=1s x y"},
		{config: `{"store-options": {"http://h/*": {"http-auth": "Bearer t", "http-cookie": "a=b"}}}`,
			line: "extract -s http://h/s http://h/i/x.caibx y", want: "assemble --store=http://h/s http://h/i/x.caibx y",
			headers: []Header{{"h", "Authorization: Bearer t"}, {"h", "Cookie: a=b"}}},
		{config: `{"store-options": {"s": {"uncompressed": true}}}`, line: "make -s s x y", want: "make --store=s --compression=none --gc-root=managed x y"},
		{config: `{"store-options": {"s": {"uncompressed": true}}}`, line: "make -s t x y", want: "make --store=t --gc-root=managed x y"},
		{config: `{"store-options": {"s": {}, "s/": {}}}`, line: "make -s s x y", want: "several store-options"},
		{config: `{"store-options": {"https://*": {"trust-insecure": true}}}`, line: "make -s https://h x y", want: "--ca-cert FILE"},
		{config: `{"store-options": {"https://*": {"trust-insecure": true}}}`, line: "make -t=false -s https://h x y", want: "make --store=https://h --gc-root=managed x y"},
		{config: `{"store-options": {"s": {"encryption": true}}}`, line: "extract -s s x y", want: "encrypted chunks"},
		{config: `{"store-options": {"https://a/*": {"ca-cert": "a"}, "https://b/*": {"ca-cert": "b"}}}`,
			line: "extract -s https://a/s -s https://b/s x y", want: "different values of ca-cert"},
		{config: `{"s3-credentials": {"https://h:9000": {"access-key": "id", "secret-key": "key", "aws-region": "r"}}}`,
			line: "extract -s s3+https://h:9000/b/s s3+https://h:9000/b/x.caibx y", want: "assemble --store=s3+https://h:9000/b/s s3+https://h:9000/b/x.caibx y",
			env: map[string]string{"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "r"}},
		{config: `{"s3-credentials": {"https://a": {"access-key": "id"}, "https://b": {"access-key": "other"}}}`,
			line: "extract -s s3+https://a/s -s s3+https://b/s x y", want: "different keys for S3"},
		{config: `{"s3-credentials": {"http://a": {"aws-credentials-file": "f", "aws-profile": "p"}}}`,
			line: "make -s s3+http://a/s x y", want: "make --store=s3+http://a/s --gc-root=managed x y",
			env: map[string]string{"AWS_SHARED_CREDENTIALS_FILE": "f", "AWS_PROFILE": "p"}},
		{config: `{"store-options": {"http://h/*": {"http-auth": "Bearer t\nX: y"}}}`, line: "extract -s http://h/s x y", want: "of one line"},
		{config: `{"store-options": {"http://h/i": {"http-auth": "t"}}}`, line: "list-chunks http://h/i/x.caibx?a=b/c",
			want: "desync-list-chunks http://h/i/x.caibx?a=b/c", headers: []Header{{"h", "Authorization: t"}}},
		{config: `{"s3-credentials": 1}`, line: "make -s s x y", want: "reading c.json"},
	} {
		if err := os.WriteFile("c.json", []byte(test.config), 0o600); err != nil {
			t.Fatal(err)
		}
		call, err := Translate(Desync, append([]string{"--config", "c.json"}, strings.Fields(test.line)...), "1.0")
		if err != nil {
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %s: %v, want %s", test.config, test.line, err, test.want)
			}
			continue
		}
		if got := strings.Join(call.Args, " "); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.line, got, test.want)
		}
		if test.env == nil {
			test.env = map[string]string{}
		}
		if diff := cmp.Diff(test.env, call.Env) + cmp.Diff(test.headers, call.Headers); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.line, diff)
		}
	}
}

// TestMatchLocation: patterns match as desync's do.
func TestMatchLocation(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, test := range []struct {
		pattern, location string
		want              bool
	}{
		{"http://host/path/", "http://host/path", true},
		{"https://host", "https://host/", true},
		{"https://host/path*", "https://host/path/", true},
		{"https://example.com/*/*/", "https://example.com/path/another/", true},
		{"*://example.com", "https://example.com", true},
		{"https://example.com/fo[a-z]", "https://example.com/foo", true},
		{"http://host:8080/path", "http://host/path", false},
		{"https://example.com/*", "https://example.com/path/another", false},
		{"*", "https://example.com/path", false},
		{"ssh://host/path", "/path", false},
		{"path/..", ".", true},
		{"/path*", "/path/../path", true},
		{"path/*", "path/to", true},
		{"/path", "path", false},
		{"/path/*", "/path", false},
		{"[", "[", false},
	} {
		if got := matchLocation(test.pattern, test.location); got != test.want {
			t.Errorf("matchLocation(%q, %q) = %v", test.pattern, test.location, got)
		}
	}
}
