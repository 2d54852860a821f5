package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// agentRig is a machine with two slots in files and a boot loader that is a script, and a repository with keys.
type agentRig struct {
	dir string
}

const agentConfig = `channel = "CHANNEL"
name = "example.com/os"
compatible = "box"
keys = ["DIR/keys.d"]
state = "DIR/state"
build = "DIR/build.toml"
machine_id = "DIR/id"
boot_id = "DIR/boot"

[[slot]]
name = "a"
targets = { root = "DIR/root-a", boot = "DIR/boot-a" }

[[slot]]
name = "b"
targets = { root = "DIR/root-b", boot = "DIR/boot-b" }

[boot]
backend = "DIR/loader"
env = { LOADER = "DIR" }
`

const agentLoader = `#!/bin/sh
cd "$LOADER" || exit
case $1 in
  get-current) cat current ;;
  get-primary) cat primary ;;
  set-primary) echo "$2" >primary; echo good >"state.$2" ;;
  get-state) cat "state.$2" ;;
  set-state) echo "$3" >"state.$2" ;;
esac
`

// newAgentRig returns a machine that runs release 5 from slot a. The repository has the releases 4 to 6, and a channel that
// names 6.
func newAgentRig(t *testing.T) *agentRig {
	t.Helper()
	r := &agentRig{t.TempDir()}
	for name, text := range map[string]string{
		"loader": agentLoader, "current": "a\n", "primary": "a\n", "state.a": "good\n", "state.b": "bad\n",
		"build.toml": "serial = 5\nmin_serial = 3\ncreated = 2026-01-01T00:00:00Z\n", "id": strings.Repeat("0123456789abcdef", 2) + "\n", "boot": "1\n",
		"root-b": "what slot b had", "boot-b": "what slot b had before",
	} {
		writeFile(t, r.dir, name, []byte(text))
	}
	must(t, "chmod", "755", r.path("loader"))
	repo := mkdir(t, r.path("repo"))
	for _, key := range []string{"release", "channel", "stranger"} {
		cairn(t, "key", "generate", "example.com/"+key, r.path(key))
	}
	writeFile(t, mkdir(t, r.path("keys.d")), "os.pub", []byte("release "+string(readFile(t, r.path("release.pub")))+"channel "+string(readFile(t, r.path("channel.pub")))))
	for serial := 4; serial <= 6; serial++ {
		r.makeRelease(t, serial, "release")
	}
	r.setChannel(t, "--release", "6.release")
	must(t, "cp", filepath.Join(repo, "../root5"), r.path("root-a"))
	must(t, "cp", filepath.Join(repo, "../boot5"), r.path("boot-a"))
	return r
}

func (r *agentRig) path(name string) string { return filepath.Join(r.dir, name) }

// makeRelease makes the release of a serial with two images, unless it has the flags of another one.
func (r *agentRig) makeRelease(t *testing.T, serial int, key string, flags ...string) {
	t.Helper()
	for n, role := range []string{"root", "boot"} {
		image := writeFile(t, r.dir, fmt.Sprint(role, serial), testimages.Random(uint64(10*serial+n), 200_000))
		cairn(t, "make", r.path(fmt.Sprintf("repo/%s%d.caibx", role, serial)), image)
	}
	args := []string{"release", "make", r.path(fmt.Sprintf("repo/%d.release", serial)), "--name", "example.com/os", "--version", fmt.Sprint("v", serial),
		"--serial", fmt.Sprint(serial), "--compatible", "box", "--key", r.path(key),
		"--image", fmt.Sprintf("root=root%d.caibx", serial), "--image", fmt.Sprintf("boot=boot%d.caibx,order=9", serial)}
	cairn(t, append(args, flags...)...)
}

func (r *agentRig) setChannel(t *testing.T, flags ...string) {
	t.Helper()
	cairn(t, append([]string{"channel", "set", r.path("repo/stable.channel"), "--key", r.path("channel")}, flags...)...)
}

// update runs a command of the agent, which reads the repository from a location.
func (r *agentRig) update(t *testing.T, repo string, args ...string) ran {
	t.Helper()
	config := writeFile(t, r.dir, "update.toml", []byte(strings.NewReplacer("CHANNEL", repo+"/stable.channel", "DIR", r.dir).Replace(agentConfig)))
	return run(t, "cairn", slices.Concat([]string{"update"}, args, []string{"--config", config})...)
}

// wantUntouched fails if slot b or the boot loader has changed.
func (r *agentRig) wantUntouched(t *testing.T) {
	t.Helper()
	for name, want := range map[string]string{"root-b": "what slot b had", "boot-b": "what slot b had before", "primary": "a\n", "state.a": "good\n", "state.b": "bad\n"} {
		if got := string(readFile(t, r.path(name))); got != want {
			t.Errorf("%s is %.40q, want %q", name, got, want)
		}
	}
}

// TestHostileChannels: the attacks that The Update Framework lists, on a machine that follows a channel. Each is refused with
// exit status 3 and a reason, before a byte of a slot or the boot loader changes.
func TestHostileChannels(t *testing.T) {
	t.Parallel()
	copied := func(from, to string) func(*testing.T, *agentRig) {
		return func(t *testing.T, r *agentRig) { must(t, "cp", r.path("repo/"+from), r.path("repo/"+to)) }
	}
	for name, c := range map[string]struct {
		attack func(t *testing.T, r *agentRig)
		status int
		words  string
	}{
		"nothing": {func(*testing.T, *agentRig) {}, 0, "staged|tries it"},
		"arbitrary software": {func(t *testing.T, r *agentRig) {
			r.makeRelease(t, 7, "stranger")
			r.setChannel(t, "--release", "7.release")
		}, damaged, "signed by example.com/stranger"},
		"a channel of a stranger": {func(t *testing.T, r *agentRig) {
			cairn(t, "channel", "set", r.path("repo/stable.channel"), "--key", r.path("stranger"), "--release", "6.release", "--serial", "9")
		}, damaged, "signed by example.com/stranger"},
		"a channel by the release's key": {func(t *testing.T, r *agentRig) {
			cairn(t, "channel", "set", r.path("repo/stable.channel"), "--key", r.path("release"), "--release", "6.release", "--serial", "9")
		}, damaged, "not enough for a channel"},
		"a release by the channel's key": {func(t *testing.T, r *agentRig) {
			r.makeRelease(t, 7, "channel")
			r.setChannel(t, "--release", "7.release")
		}, damaged, "not enough for a release"},
		"another release in its place": {copied("4.release", "6.release"), damaged, "is not the one that the channel"},
		"index swap":                   {copied("root5.caibx", "root6.caibx"), damaged, "is not the one that"},
		"mix-and-match":                {copied("boot5.caibx", "boot6.caibx"), damaged, "is not the one that"},
		"rollback below the floor": {func(t *testing.T, r *agentRig) {
			r.makeRelease(t, 2, "release")
			r.setChannel(t, "--release", "2.release", "--allow-older")
		}, damaged, "takes none below 3"},
		"rollback": {func(t *testing.T, r *agentRig) {
			r.setChannel(t, "--release", "4.release", "--allow-older")
		}, damaged, "this machine runs 5"},
		"rollback of the channel": {func(t *testing.T, r *agentRig) {
			copied("stable.channel", "old")(t, r)
			r.setChannel(t, "--release", "6.release", "--pause")
			if got := r.update(t, r.path("repo")); got.status != 0 {
				t.Fatal(got.stderr)
			}
			copied("old", "stable.channel")(t, r)
		}, damaged, "holds it back"},
		"freeze": {func(t *testing.T, r *agentRig) {
			r.setChannel(t, "--release", "6.release", "--expires", "1s")
			must(t, "sleep", "2")
		}, damaged, "expired"},
		"wrong product": {func(t *testing.T, r *agentRig) {
			cairn(t, "release", "make", r.path("repo/7.release"), "--name", "example.com/x", "--version", "v7", "--serial", "7", "--compatible", "box",
				"--key", r.path("release"), "--image", "root=root6.caibx", "--image", "boot=boot6.caibx")
			must(t, "rm", r.path("repo/stable.channel"))
			r.setChannel(t, "--release", "7.release")
		}, damaged, "example.com/x"},
		"wrong hardware": {func(t *testing.T, r *agentRig) {
			cairn(t, "release", "make", r.path("repo/7.release"), "--name", "example.com/os", "--version", "v7", "--serial", "7", "--compatible", "crate",
				"--key", r.path("release"), "--image", "root=root6.caibx", "--image", "boot=boot6.caibx")
			r.setChannel(t, "--release", "7.release")
		}, damaged, "this machine is box"},
		"images left out": {func(t *testing.T, r *agentRig) {
			cairn(t, "release", "make", r.path("repo/7.release"), "--name", "example.com/os", "--version", "v7", "--serial", "7", "--compatible", "box",
				"--key", r.path("release"), "--image", "root=root6.caibx")
			r.setChannel(t, "--release", "7.release")
		}, 1, "has no image for it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newAgentRig(t)
			c.attack(t, r)
			server := httptest.NewServer(http.FileServer(http.Dir(r.path("repo"))))
			defer server.Close()
			got := r.update(t, server.URL)
			found := false
			for word := range strings.SplitSeq(c.words, "|") {
				found = found || strings.Contains(got.stderr, word)
			}
			if got.status != c.status || !found {
				t.Errorf("exit status %d, want %d and %q: %s", got.status, c.status, c.words, got.stderr)
			}
			if c.status != 0 {
				r.wantUntouched(t)
			}
		})
	}
}

// TestUpdateTrouble: a machine in trouble does the right thing, with clear words.
func TestUpdateTrouble(t *testing.T) {
	t.Parallel()
	r := newAgentRig(t)
	repo := r.path("repo")

	// The server is away, and then lacks a chunk.
	if got := r.update(t, "http://127.0.0.1:9", "--patience", "1s"); got.status != 4 {
		t.Errorf("no server: exit status %d: %s", got.status, got.stderr)
	}
	r.wantUntouched(t)
	x := readIndex(t, r.path("repo/boot6.caibx"))
	chunk := chunkFile(filepath.Join(repo, "default.castr"), x.At(0).Digest)
	if err := os.Rename(chunk, chunk+".away"); err != nil {
		t.Fatal(err)
	}
	if got := r.update(t, repo); got.status != 4 || !strings.Contains(got.stderr, "staging boot in slot b") {
		t.Errorf("a chunk that is missing: exit status %d: %s", got.status, got.stderr)
	}
	if got := r.update(t, repo, "status", "--json"); !strings.Contains(got.stdout, `"awaits-stage"`) {
		t.Errorf("afterwards: %s%s", got.stdout, got.stderr)
	}
	if got := r.update(t, repo, "switch"); got.status != 0 || !strings.Contains(got.stderr, "nothing to switch to") || string(readFile(t, r.path("primary"))) != "a\n" {
		t.Errorf("a switch to half a release: %d: %s", got.status, got.stderr)
	}
	if err := os.Rename(chunk+".away", chunk); err != nil {
		t.Fatal(err)
	}
	if got := r.update(t, repo, "stage"); got.status != 0 || string(readFile(t, r.path("state.b"))) != "bad\n" {
		t.Errorf("staging again: exit status %d: %s", got.status, got.stderr)
	}
	wantSame(t, r.path("root-b"), r.path("root6"))
	wantSame(t, r.path("boot-b"), r.path("boot6"))

	// Another agent is at work.
	lock := open(t, r.path("state/lock"))
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if got := r.update(t, repo, "switch"); got.status != 5 || !strings.Contains(got.stderr, "another process") {
		t.Errorf("two agents: exit status %d: %s", got.status, got.stderr)
	}
	if got := r.update(t, repo, "status"); got.status != 0 {
		t.Errorf("the status beside an agent: exit status %d: %s", got.status, got.stderr)
	}
	lock.Close()

	// The state is from another machine, and then lost: the floor is that of the running release.
	writeFile(t, r.dir, "id", []byte(strings.Repeat("f", 32)))
	if got := r.update(t, repo, "switch"); got.status != 0 || !strings.Contains(got.stderr, "of another machine") || !strings.Contains(got.stderr, "nothing to switch to") {
		t.Errorf("a foreign state: exit status %d: %s", got.status, got.stderr)
	}
	must(t, "rm", "-r", r.path("state"))
	if got := r.update(t, repo, "status", "--json"); got.status != 0 || !strings.Contains(got.stdout, `"floor": 3`) {
		t.Errorf("a lost state: exit status %d: %s%s", got.status, got.stdout, got.stderr)
	}
}

// TestUnits: systemd accepts the units in docs/agent.md.
func TestUnits(t *testing.T) {
	need.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	units := regexp.MustCompile("(?s)```\n# /etc/systemd/system/([a-z.-]+)\n(.*?)```").FindAllStringSubmatch(string(readFile(t, "../../../docs/agent.md")), -1)
	if len(units) != 3 {
		t.Fatalf("docs/agent.md has %d units, want 3", len(units))
	}
	args := []string{"verify"}
	for _, unit := range units {
		text := strings.ReplaceAll(unit[2], "/usr/bin/cairn", need.Tool(t, "cairn"))
		args = append(args, writeFile(t, dir, unit[1], []byte(text)))
	}
	if r := run(t, "systemd-analyze", args...); r.status != 0 || strings.Contains(r.stderr, dir) {
		t.Errorf("systemd-analyze verify: exit status %d: %s%s", r.status, r.stdout, r.stderr)
	}
}
