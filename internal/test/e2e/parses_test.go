package e2e

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/store/storetest"
)

// parsers are the functions that parse a location, by file and name.
var parsers = map[string]string{
	"locate": "store/locate/location.go Parse",
	"web":    "store/web/location.go Parse",
	"s3":     "store/s3/location.go Parse",
	"sftp":   "store/sftp/location.go Parse",
	"url":    "store/location.go ParseURL",
	"disk":   "internal/disk/resolve.go Resolve",
}

// TestParsedOnce counts the calls of each parser of locations in one assemble and one serve with several
// stores, seeds and a default store. There is one call for each given location, and none for a derived one.
func TestParsedOnce(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	dir, binary := t.TempDir(), filepath.Join(t.TempDir(), "cairn")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-cover", "-covermode=count",
		"-coverpkg=cairn/cmd/cairn,cairn/store,cairn/store/locate,cairn/store/web,cairn/store/s3,cairn/store/sftp,cairn/internal/disk", "-o", binary, "cairn/cmd/cairn")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	web := newNginx(t, r.dir)
	s3 := storetest.S3(t, storetest.S3Options{})
	s3.Bucket(t, "images")
	sshd := storetest.NewSSHD(t, "internal-sftp")
	ssh := writeFile(t, dir, "ssh", []byte("#!/bin/sh\nexec ssh -F "+sshd.Config+" \"$@\"\n"))
	if err := os.Chmod(ssh, 0o755); err != nil {
		t.Fatal(err)
	}
	inSFTP := "sftp://store" + r.dir + "/absent.castr"

	counted := t.TempDir()
	// counting returns the arguments of env that run cairn. The counts are written at the end, unconfined.
	counting := func(args ...string) []string {
		return append([]string{"AWS_ACCESS_KEY_ID=" + s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s3.SecretKey, "CAIRN_SSH=" + ssh,
			"CAIRN_CONFINE=off", "GOCOVERDIR=" + counted, binary}, args...)
	}
	must(t, "env", counting("assemble", web.url+"/b.caibx", filepath.Join(dir, "out"), "--state", "", "--seed", r.a+"="+r.index("a"), "--seed", r.a,
		"-s", s3.Location("images/absent.castr", "")+"|"+inSFTP, "-s", web.url+"/absent.castr", "-s", filepath.Join(r.dir, "default.castr"))...)
	wantCalls(t, counted, map[string]int{
		"locate": 6, // the index, a seed's index, four stores
		"web":    2, "s3": 1, "sftp": 1, "url": 4,
		"disk": 3, // the target and two seeds
	})

	counted = t.TempDir()
	serving := func(args ...string) {
		s := &serving{job: startProgram(t, nil, "env", counting(append([]string{"serve", "--listen", "tcp:127.0.0.1:0"}, args...)...)...)}
		s.uris = strings.Fields(s.stdout.await(t, "\n"))
		must(t, "nbdcopy", s.uris[0], filepath.Join(dir, "copy"))
		s.signal(t, syscall.SIGTERM)
		s.wantStopped(t)
	}
	serving(web.url + "/b.caibx") // with the default store and the profile beside it
	wantCalls(t, counted, map[string]int{"locate": 1, "web": 1, "url": 1})
	counted = t.TempDir()
	serving(r.index("b"), web.url+"/a.caibx", "-s", s3.Location("images/absent.castr", "")+"|"+web.url+"/default.castr", "-s", inSFTP)
	wantCalls(t, counted, map[string]int{"locate": 5, "web": 2, "s3": 1, "sftp": 1, "url": 4})
}

// wantCalls compares the calls of the parsers in programs that wrote coverage data into a directory.
func wantCalls(t *testing.T, counted string, want map[string]int) {
	t.Helper()
	profile := filepath.Join(t.TempDir(), "profile")
	must(t, "go", "tool", "covdata", "textfmt", "-i="+counted, "-o="+profile)
	text, err := os.ReadFile(profile)
	if err != nil {
		t.Fatal(err)
	}
	for name, place := range parsers {
		file, function, _ := strings.Cut(place, " ")
		if got := callsOf(t, string(text), file, function); got != want[name] {
			t.Errorf("%s in %s is called %d times, want %d", function, file, got, want[name])
		}
	}
}

// callsOf returns how often the first block of a function ran, from a profile with lines of the form
// FILE:LINE.COLUMN,LINE.COLUMN STATEMENTS COUNT.
func callsOf(t *testing.T, profile, file, function string) int {
	t.Helper()
	begin, end := bodyOf(t, filepath.Join("../../..", file), function)
	first, calls := 0, 0
	for line := range strings.Lines(profile) {
		block, found := strings.CutPrefix(line, "cairn/"+file+":")
		var at, column, endLine, endColumn, statements, count int
		if !found {
			continue
		}
		if _, err := fmt.Sscanf(block, "%d.%d,%d.%d %d %d", &at, &column, &endLine, &endColumn, &statements, &count); err != nil {
			t.Fatal(err)
		}
		if at >= begin && at <= end && (first == 0 || at < first) {
			first, calls = at, count
		}
	}
	return calls // also 0 for a package that did not run
}

// bodyOf returns the first and the last line of the body of a function.
func bodyOf(t *testing.T, path, function string) (begin, end int) {
	t.Helper()
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == function && fn.Recv == nil {
			return files.Position(fn.Body.Pos()).Line, files.Position(fn.Body.End()).Line
		}
	}
	t.Fatalf("%s has no function %s", path, function)
	return 0, 0
}
