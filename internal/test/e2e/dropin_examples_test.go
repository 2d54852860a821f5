package e2e

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/storetest"
	"cairn/testimages"
)

// links makes links to the binary with the names of other tools, and returns their directory.
func links(t testing.TB) string {
	t.Helper()
	dir, binary := t.TempDir(), need.Tool(t, "cairn")
	for _, name := range []string{"casync", "desync"} {
		if err := os.Symlink(binary, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runIn runs a program in a directory, with additional variables of the environment.
func runIn(t testing.TB, dir string, env []string, name string, args ...string) ran {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestDropinExamples runs each example of the documentation of casync and desync by the name of the tool. The examples'
// absolute paths are below a directory of the test, and their servers are servers of the test.
func TestDropinExamples(t *testing.T) {
	t.Parallel()
	w := newDropinWorld(t)
	examples := string(readFile(t, "../../dropin/testdata/examples.txt"))
	ran := 0
	for line := range strings.Lines(examples) {
		mark, example, _ := strings.Cut(strings.TrimSpace(line), " ")
		if mark != "+" && mark != "-" {
			continue
		}
		ran++
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			w.try(t, example, mark == "+")
		})
	}
	if ran < 100 {
		t.Errorf("the list has %d examples", ran)
	}
}

// dropinWorld is what the examples find: two images, their indexes, a store, and servers.
type dropinWorld struct {
	links, v1, v2, index1, index2, store string
	plain, secure                        *httptest.Server
	s3                                   *storetest.S3Server
	env                                  []string
	mu                                   sync.Mutex
	uploads                              int  // requests with a chunk
	authorized                           bool // a request had the header of the example with http-auth
}

func newDropinWorld(t *testing.T) *dropinWorld {
	dir := t.TempDir()
	w := &dropinWorld{links: links(t), store: filepath.Join(dir, "default.castr")}
	old := testimages.Random(1, 3*mib)
	w.v1 = writeFile(t, dir, "v1", old)
	w.v2 = writeFile(t, dir, "v2", append(append(old[:mib:mib], testimages.Random(2, mib)...), old[mib+1000:]...))
	w.index1, w.index2 = filepath.Join(dir, "v1.caibx"), filepath.Join(dir, "v2.caibx")
	cairn(t, "make", w.index1, w.v1)
	cairn(t, "make", w.index2, w.v2)
	w.plain, w.secure = httptest.NewServer(w), httptest.NewTLSServer(w)
	t.Cleanup(w.plain.Close)
	t.Cleanup(w.secure.Close)
	w.s3 = storetest.S3(t, storetest.S3Options{})
	w.s3.Bucket(t, "store")
	sshd := storetest.NewSSHD(t, "internal-sftp")
	ssh := writeFile(t, t.TempDir(), "ssh", []byte("#!/bin/sh\nexec ssh -F "+sshd.Config+" \"$@\"\n"))
	if err := os.Chmod(ssh, 0o755); err != nil {
		t.Fatal(err)
	}
	w.env = []string{"CAIRN_SSH=" + ssh, "S3_ACCESS_KEY=" + w.s3.AccessKey, "S3_SECRET_KEY=" + w.s3.SecretKey, "S3_REGION=us-east-1"}
	return w
}

// ServeHTTP serves the chunks of the store at every path, and the new index at every path that ends in .caibx.
func (w *dropinWorld) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "Bearer abcabcabc" {
		w.mu.Lock()
		w.authorized = true
		w.mu.Unlock()
	}
	parts := strings.Split(r.URL.Path, "/")
	name := path.Join(parts[max(len(parts)-2, 0):]...)
	switch {
	case r.Method == http.MethodPut:
		_, _ = io.Copy(io.Discard, r.Body)
		w.mu.Lock()
		w.uploads++
		w.mu.Unlock()
		out.WriteHeader(http.StatusCreated)
	case strings.HasPrefix(r.URL.Path, "/empty/"):
		http.NotFound(out, r)
	case strings.HasSuffix(name, ".caibx"):
		http.ServeFile(out, r, w.index2)
	default:
		http.ServeFile(out, r, filepath.Join(w.store, name))
	}
}

var (
	absolutePath = regexp.MustCompile(`(^|[ =:|])/([a-z])`)
	sshServer    = regexp.MustCompile(`(ssh|sftp)://[a-z0-9.]+/`)
	httpServer   = regexp.MustCompile(`https?://[a-z0-9.]+(:[0-9]+)?`)
)

// try runs one example in a directory of its own.
func (w *dropinWorld) try(t *testing.T, example string, works bool) {
	root := t.TempDir()
	command := absolutePath.ReplaceAllString(example, "${1}"+root+"/${2}")
	command = sshServer.ReplaceAllString(command, "${1}://store"+root+"/server/")
	command = strings.ReplaceAll(command, "https://hostname:8443", w.secure.URL)
	command = strings.ReplaceAll(command, "s3+http://127.0.0.1:9000/store", w.s3.Location("store/default.castr", ""))
	command = strings.ReplaceAll(command, "http://store.host:8080", w.plain.URL+"/empty")
	if !strings.Contains(command, "s3+http") && !strings.Contains(command, w.secure.URL) {
		command = httpServer.ReplaceAllStringFunc(command, func(server string) string {
			if server == w.plain.URL {
				return server
			}
			return w.plain.URL
		})
	}
	e := w.prepare(t, root, strings.Fields(command))
	r := runIn(t, root, append(w.env, "HOME="+root), filepath.Join(w.links, e.tool), e.args...)
	if !works {
		if r.status != failed || r.stdout != "" || !strings.Contains(r.stderr, "cairn: error: "+e.tool+": ") {
			t.Errorf("exit status %d, want a refusal\n%s%s", r.status, r.stdout, r.stderr)
		}
		return
	}
	if r.status != 0 {
		t.Fatalf("exit status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	w.check(t, e, r)
}

// dropinExample is the command line of an example.
type dropinExample struct {
	tool, command string
	root          string
	args          []string
	positional    []string // without the command
	flags         map[string][]string
}

// prepare makes the files that a command line needs.
func (w *dropinWorld) prepare(t *testing.T, root string, words []string) *dropinExample {
	t.Helper()
	e := &dropinExample{tool: words[0], root: root, args: words[1:], flags: map[string][]string{}}
	for i := 1; i < len(words); i++ {
		name, value, has := strings.Cut(words[i], "=")
		switch {
		case !strings.HasPrefix(name, "-") || name == "-":
			e.positional = append(e.positional, words[i])
			continue
		case !has && strings.Contains(" -s --store -c --seed --seed-dir --config --chunks-info --ca-cert --client-cert --client-key -o -l -m --error-retry --ignore ", " "+name+" ") && i+1 < len(words):
			i++
			value = words[i]
		}
		name = map[string]string{"-s": "--store", "-c": "--cache"}[name] + strings.TrimPrefix(strings.TrimPrefix(name, "-s"), "-c")
		if name == "--store" || name == "--cache" || strings.HasPrefix(name, "-") {
			e.flags[name] = append(e.flags[name], value)
		}
	}
	if len(e.positional) > 0 {
		e.command, e.positional = e.positional[0], e.positional[1:]
	}
	w.writeInputs(t, e)
	return e
}

// copyTo copies a file to a path below the root of an example, unless the path is on a server or "-".
func (e *dropinExample) copyTo(t *testing.T, file, to string) {
	t.Helper()
	if _, rest, ok := strings.Cut(to, "://store"); ok { // the server of ssh
		to = rest
	}
	if strings.Contains(to, "://") || to == "-" {
		return
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(e.root, to)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", "-rT", file, to)
}

// writeInputs writes what an example reads: configurations, certificates, seeds, stores, indexes and images.
func (w *dropinWorld) writeInputs(t *testing.T, e *dropinExample) {
	t.Helper()
	scratch := t.TempDir()
	for _, name := range e.flags["--config"] {
		config := "{}"
		if e.command == "cache" {
			config = fmt.Sprintf(`{"store-options": {%q: {"uncompressed": true}}}`, w.plain.URL+"/empty/")
		} else if e.command == "extract" {
			config = fmt.Sprintf(`{"store-options": {%q: {"http-auth": "Bearer abcabcabc"}}}`, w.plain.URL+"/")
		}
		e.copyTo(t, writeFile(t, scratch, "config", []byte(config)), name)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.secure.Certificate().Raw})
	for _, name := range e.flags["--ca-cert"] {
		e.copyTo(t, writeFile(t, scratch, "ca", certificate), name)
	}
	if len(e.flags["--client-cert"]) > 0 {
		must(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=client", "-days", "2",
			"-keyout", filepath.Join(e.root, "client.key"), "-out", filepath.Join(e.root, "client.crt"))
	}
	for _, seed := range e.flags["--seed"] {
		index, blob, ok := strings.Cut(seed, ".caibx:")
		if !ok {
			index, _ = strings.CutSuffix(seed, ".caibx")
			blob = index
		}
		e.copyTo(t, w.v1, blob)
		if strings.HasSuffix(seed, ".caibx") || ok {
			e.copyTo(t, w.index1, index+".caibx")
		}
	}
	for _, dir := range e.flags["--seed-dir"] {
		e.copyTo(t, w.v1, dir+"/v1")
		e.copyTo(t, w.index1, dir+"/v1.caibx")
	}
	for _, index := range e.flags["--ignore"] {
		e.copyTo(t, w.index1, index)
	}
	for _, name := range e.flags["--chunks-info"] {
		e.copyTo(t, writeFile(t, scratch, "info", []byte(cairn(t, "desync-inspect-chunks", "-s", w.store, w.index2))), name)
	}
	if e.command != "make" {
		for _, group := range e.flags["--store"] {
			for member := range strings.SplitSeq(group, "|") {
				e.copyTo(t, w.store, member)
			}
		}
	}
	w.writeArguments(t, e)
}

// writeArguments writes the files that the arguments of an example name.
func (w *dropinWorld) writeArguments(t *testing.T, e *dropinExample) {
	t.Helper()
	for i, name := range e.positional {
		switch {
		case strings.HasSuffix(name, "/lennart") || name == ".":
			e.copyTo(t, t.TempDir(), name)
		case e.command == "make" && i == 0:
			e.copyTo(t, t.TempDir(), path.Dir(name)) // the directory of the index
		case e.command == "make", i == 1 && (e.command == "verify-index" || e.command == "chop"), e.command == "chunk":
			e.copyTo(t, w.v2, name)
		case i == 0, e.command == "cache":
			e.copyTo(t, w.index2, name)
		case i == 1 && e.command == "extract":
			e.copyTo(t, t.TempDir(), path.Dir(name))
		}
	}
}

// check checks what an example wrote.
func (w *dropinWorld) check(t *testing.T, e *dropinExample, r ran) {
	t.Helper()
	at := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(e.root, name)
	}
	image := string(readFile(t, w.v2))
	switch {
	case e.command == "extract" && e.positional[1] == "-":
		if r.stdout != image {
			t.Error("stdout is not the image")
		}
	case e.command == "extract":
		wantSame(t, at(e.positional[1]), w.v2)
		w.mu.Lock()
		defer w.mu.Unlock()
		if strings.HasPrefix(e.args[0], "--config") && !w.authorized { // the only example that sends the header
			t.Error("no request had the header field of the configuration")
		}
	case e.command == "cat" && len(e.positional) == 2:
		if got := string(readFile(t, at(e.positional[1]))); got != image[1048576:1048576+4096] {
			t.Errorf("the output of %d bytes is not the part of the image", len(got))
		}
	case e.command == "cat" && r.stdout != image:
		t.Error("stdout is not the image")
	case e.command == "make" && e.positional[0] != "-" && !strings.Contains(strings.Join(e.args, " "), "--chunk-size"):
		wantSame(t, at(e.positional[0]), w.index2)
	case e.command == "cache":
		w.checkCache(t, e)
	}
	output := strings.Contains(" cat info list-chunks chunk digest ", " "+e.command+" ") || e.command == "inspect-chunks" && len(e.positional) == 1
	if output && len(e.positional) < 2 && r.stdout == "" {
		t.Error("nothing is printed")
	}
}

// checkCache checks that the chunks of the image are in the target of desync cache.
func (w *dropinWorld) checkCache(t *testing.T, e *dropinExample) {
	t.Helper()
	seen := map[string]bool{}
	for _, c := range readIndex(t, w.index2).All() {
		seen[c.Digest.String()] = true
	}
	if len(e.flags["--ignore"]) > 0 {
		for _, c := range readIndex(t, w.index1).All() {
			delete(seen, c.Digest.String())
		}
	}
	want, target := len(seen), e.flags["--cache"][0]
	if strings.HasPrefix(target, "http") { // in one example
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.uploads != want {
			t.Errorf("%d chunks were sent, want %d", w.uploads, want)
		}
		return
	}
	if _, rest, ok := strings.Cut(target, "://store"); ok {
		target = rest
	}
	chunks, err := filepath.Glob(filepath.Join(target, "*", "*.cacnk"))
	if err != nil || len(chunks) != want {
		t.Errorf("%s has %d chunks, want %d", target, len(chunks), want)
	}
}
