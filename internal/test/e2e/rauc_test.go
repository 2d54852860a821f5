package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/test/looptest"
)

// raucMode is a way in which RAUC calls casync or desync.
type raucMode struct {
	name   string
	desync bool
	args   []string // of rauc convert
}

var raucModes = []raucMode{
	{name: "casync"},
	{name: "casync with a chunk size in bytes", args: []string{`--casync-args=--chunk-size=64000`}},
	{name: "desync", desync: true},
	{name: "desync with chunk sizes in KiB", desync: true, args: []string{`--casync-args=--chunk-size=32:128:512`}},
}

// section returns lines of the section [casync] of a mode.
func (m raucMode) section(lines ...string) []string {
	return append(lines, fmt.Sprint("use-desync=", m.desync))
}

// inPlace are install-args for desync itself: without --in-place it replaces a device's node by a file.
const inPlace = "install-args=--in-place"

// wantSameChunks checks that two indexes list the same chunks. desync's have other feature flags than casync's.
func wantSameChunks(t testing.TB, got, want string) {
	t.Helper()
	if a, b := readFile(t, got), readFile(t, want); !bytes.Equal(a[24:], b[24:]) {
		t.Errorf("%s and %s differ", got, want)
	}
}

// TestRAUC: rauc convert and rauc install do the same with cairn as casync and desync as with these themselves.
func TestRAUC(t *testing.T) {
	t.Parallel()
	raucs := needRAUC(t)
	p := small(t)
	for i, rauc := range raucs {
		peers, ours := peerPrograms(t, rauc), dropIns(t, rauc)
		for _, mode := range raucModes {
			if i > 0 && mode.args != nil {
				continue // the arguments do not pass through other code in another RAUC
			}
			t.Run(ours.version(t)+" "+mode.name, func(t *testing.T) {
				t.Parallel()
				theirs := newBundle(t, peers, mode.desync, p.b, mode.args...)
				mine := newBundle(t, ours, mode.desync, p.b, mode.args...)
				wantSameChunks(t, mine.index(), theirs.index())
				newRAUCMachine(t, p, ours).wantInstalled(t, theirs.file(), p.b, mode.section()...)
				if mode.args != nil {
					return
				}
				var args string
				if mode.desync {
					args = inPlace
				}
				newRAUCMachine(t, p, peers).wantInstalled(t, mine.file(), p.b, mode.section(args)...)
				m := newRAUCMachine(t, p, ours)
				m.wantInstalled(t, mine.file(), p.b, mode.section("tmppath="+m.path("tmp"))...)
				wantOnly(t, m.path("tmp"))
				m.wantInstalled(t, mine.file(), p.b, mode.section()...) // over itself
			})
		}
	}
}

// steamArgs returns install-args as SteamOS has them, after it has made the seed's index and the files they name.
func (m *raucMachine) steamArgs(t testing.TB) string {
	t.Helper()
	seed := m.path("rootfs.caibx")
	m.programs.must(t, "desync", "make", seed, m.slot("a"))
	if err := os.Symlink(m.slot("a"), m.path("rootfs")); err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, m.dir, "desync.json", []byte(`{"store-options": {}}`))
	return fmt.Sprintf("install-args=--seed %s --config %s --in-place --error-retry 20", seed, config)
}

// TestRAUCRemote: a bundle with a store on a web server. A RAUC that does not stream downloads the bundle from there too.
func TestRAUCRemote(t *testing.T) {
	t.Parallel()
	raucs := needRAUC(t)
	p := small(t)
	r := publish(t, p)
	for _, rauc := range raucs {
		ours := dropIns(t, rauc)
		t.Run(ours.version(t), func(t *testing.T) {
			t.Parallel()
			bundle := newBundle(t, ours, false, p.b)
			url, sent := newDeltaServer(t, bundle.dir, true)
			install := func(name, at string, m *raucMachine, casync ...string) {
				t.Helper()
				sent()
				m.wantInstalled(t, at, p.b, casync...)
				got, limit := sent(), r.difference(t).plus(r.twoChunks(t))
				if at != bundle.file() {
					got.bytes -= fileSize(t, bundle.file())
				}
				if got.bytes > limit.bytes {
					t.Errorf("%s: %d bytes of chunks were downloaded, want at most %d", name, got.bytes, limit.bytes)
				}
			}
			store := "storepath=" + url + "/b.castr"
			install("desync without a seed", bundle.file(), newRAUCMachine(t, p, ours), store, "use-desync=true")
			at := bundle.file()
			if !ours.streams(t) {
				at, store = url+"/b.raucb", ""
			}
			install("casync", at, newRAUCMachine(t, p, ours), store)
			m := newRAUCMachine(t, p, ours)
			install("desync", at, m, store, m.steamArgs(t), "use-desync=true")
		})
	}
}

// TestRAUCKilled: a kill of RAUC and of all that it has started leaves a slot that does not mount. The next
// installation completes it.
func TestRAUCKilled(t *testing.T) {
	t.Parallel()
	rauc := needRAUC(t)[0]
	p, ours := small(t), dropIns(t, rauc)
	bundle := newBundle(t, ours, false, p.b)
	server := newNginx(t, bundle.dir)
	needed := publish(t, p).difference(t).chunks
	kills := 2
	if long() {
		kills = 20
	}
	for _, desync := range []bool{false, true} {
		mode := raucMode{desync: desync}
		t.Run(fmt.Sprint("desync ", desync), func(t *testing.T) {
			t.Parallel()
			m := newRAUCMachine(t, p, ours)
			var args string
			if desync {
				args = m.steamArgs(t)
			}
			for range kills {
				must(t, "dd", "if=/dev/urandom", "of="+m.slot("b"), "bs=1M", fmt.Sprint("count=", m.size/mib), "status=none")
				before := m.slotB(t)
				free := rand.Int64N(int64(needed))
				m.kill(t, newGate(t, server.url, free), bundle, mode.section(args)...)
				m.wantUnfinished(t, before)
				if got := m.primary(t); got != "A" {
					t.Errorf("killed after %d chunks: the machine boots %s", free, got)
				}
				m.wantInstalled(t, bundle.file(), p.b, mode.section(args, "storepath="+server.url+"/b.castr")...)
				writeFile(t, m.dir, "primary", []byte("A"))
			}
		})
	}
}

// kill starts an installation from a gate, and kills it when the gate holds a chunk.
func (m *raucMachine) kill(t testing.TB, g *gate, b raucBundle, casync ...string) {
	t.Helper()
	s := m.serve(t, append(casync, "storepath="+g.url+"/b.castr")...)
	install := startProgram(t, nil, "env", "DBUS_SYSTEM_BUS_ADDRESS="+m.bus, filepath.Join(string(m.programs), "rauc"),
		"install", b.file())
	g.await(t)
	s.end(t, syscall.SIGKILL)
	install.signal(t, syscall.SIGKILL)
	install.wait(t)
}

// TestRAUCWrongSum: an image with another sum than the manifest has is not installed.
func TestRAUCWrongSum(t *testing.T) {
	t.Parallel()
	rauc := needRAUC(t)[0]
	p, ours := small(t), dropIns(t, rauc)
	bundle := newBundle(t, ours, false, p.b)
	want := fmt.Sprintf("sha256=%x", sum(t, p.b, 0, fileSize(t, p.b)))
	wrong := bundle.resign(t, func(manifest string) string {
		if !strings.Contains(manifest, want) {
			t.Fatalf("the manifest has no line %q:\n%s", want, manifest)
		}
		return strings.ReplaceAll(manifest, want, fmt.Sprintf("sha256=%x", sum(t, p.a, 0, fileSize(t, p.a))))
	})
	for _, desync := range []bool{false, true} {
		mode := raucMode{desync: desync}
		m := newRAUCMachine(t, p, ours)
		m.wantRefused(t, "SHA-256", wrong.file(), mode.section("storepath="+bundle.store())...)
		m.wantInstalled(t, bundle.file(), p.b, mode.section()...)
	}
}

// TestRAUCFails: where casync and desync cannot get the image, RAUC goes on booting the old slot.
func TestRAUCFails(t *testing.T) {
	t.Parallel()
	rauc := needRAUC(t)[0]
	p, ours := small(t), dropIns(t, rauc)
	bundle := newBundle(t, ours, false, p.b)
	for _, desync := range []bool{false, true} {
		mode := raucMode{desync: desync}
		m := newRAUCMachine(t, p, ours)
		m.wantRefused(t, "cairn: error:", bundle.file(), mode.section("storepath="+m.path("absent.castr"))...)
		if long() { // it is retried for a minute
			failing := failing(t, bundle.dir, 2) + "/b.castr"
			m.wantRefused(t, "cairn: error:", bundle.file(), mode.section("storepath="+failing)...)
		}
		m.wantRefused(t, "--no-such-flag", bundle.file(), mode.section("install-args=--no-such-flag")...)
		m.wantInstalled(t, bundle.file(), p.b, mode.section()...)
	}
}

// TestRAUCStdout: RAUC writes UBI volumes through the standard output of casync and desync. This kernel has no UBI, so
// the test runs the same commands.
func TestRAUCStdout(t *testing.T) {
	t.Parallel()
	rauc := needRAUC(t)[0]
	p, ours := small(t), dropIns(t, rauc)
	bundle := newBundle(t, ours, false, p.b)
	image := readFile(t, p.b)
	commands := map[string][]string{
		"casync": {"extract", "--store", bundle.store(), "--seed-output=no", bundle.index(), "-"},
		"desync": {"extract", "--store", bundle.store(), bundle.index(), "-"},
	}
	for name, args := range commands {
		if got := ours.must(t, name, args...); got != string(image) {
			t.Errorf("%s wrote %d other bytes than the image to a pipe", name, len(got))
		}
		device := looptest.Attach(t, looptest.File(t, (int64(len(image))/mib+2)*mib), 512)
		for path, want := range map[string]int{device: 0, "/dev/null": 0, "/dev/full": failed} {
			stdout, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(string(ours), name), args...)
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = stdout, &stderr
			if err := cmd.Run(); cmd.ProcessState == nil {
				t.Fatal(err)
			}
			stdout.Close()
			if got := cmd.ProcessState.ExitCode(); got != want {
				t.Errorf("%s to %s: exit status %d, want %d\n%s", name, path, got, want, &stderr)
			}
		}
		wantStart(t, device, p.b)
	}
	wantNone(t, "-")
}

// raucUpdate is a way to update a machine with RAUC.
type raucUpdate struct {
	name           string
	ours           bool // cairn is casync and desync
	desync, seeded bool // in desync mode a seed is configured as in SteamOS
	delta          bool
}

var raucUpdates = []raucUpdate{
	{name: "casync"},
	{name: "desync without a seed", desync: true},
	{name: "desync with a seed", desync: true, seeded: true},
	{name: "cairn as casync", ours: true},
	{name: "cairn as desync without a seed", ours: true, desync: true},
	{name: "cairn as desync with a seed", ours: true, desync: true, seeded: true},
	{name: "cairn as casync with a delta", ours: true, delta: true},
	{name: "cairn as desync with a seed and a delta", ours: true, desync: true, seeded: true, delta: true},
}

// TestRAUCBytes: an update with a delta beside the store downloads less than with casync and with desync.
func TestRAUCBytes(t *testing.T) {
	t.Parallel()
	rauc := needRAUC(t)[0]
	p, err := ext4()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append([]pair{p}, realPairs(t)...) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			peers, ours := peerPrograms(t, rauc), dropIns(t, rauc)
			bundle := newBundle(t, ours, false, p.b)
			old := newBundle(t, ours, false, p.a)
			without, sentWithout := newDeltaServer(t, bundle.dir, true)
			withDelta := t.TempDir()
			must(t, "ln", "-s", bundle.store(), withDelta)
			making := startLimited(t, 6*patience, nil, "cairn", "delta", old.index(), bundle.index(),
				"-s", filepath.Join(withDelta, "b.castr"), "--old-image", p.a, "--new-image", p.b)
			if got := making.wait(t); got.status != 0 {
				t.Fatalf("cairn delta: %+v", got)
			}
			with, sentWith := newDeltaServer(t, withDelta, true)
			got := map[string]wire{}
			for _, u := range raucUpdates {
				t.Run(u.name, func(t *testing.T) {
					m := newRAUCMachine(t, p, peers)
					if u.ours {
						m.programs = ours
					}
					url, sent := without, sentWithout
					if u.delta {
						url, sent = with, sentWith
					}
					section := []string{"storepath=" + url + "/b.castr", fmt.Sprint("use-desync=", u.desync)}
					switch {
					case u.seeded:
						section = append(section, m.steamArgs(t))
					case u.desync && !u.ours:
						section = append(section, inPlace)
					}
					m.wantInstalled(t, bundle.file(), p.b, section...)
					got[u.name] = sent()
				})
			}
			for _, u := range raucUpdates {
				t.Logf("| %s | %.1f MB | %d |", u.name, float64(got[u.name].bytes)/1e6, got[u.name].requests)
			}
			if own, all := got["cairn as desync without a seed"], got["desync without a seed"]; own.bytes >= all.bytes {
				t.Errorf("cairn as desync takes no other slot as a seed: %+v, and desync %+v", own, all)
			}
			// Without a delta, cairn may request a late chunk twice.
			for delta, without := range map[string]string{
				"cairn as casync with a delta": "casync", "cairn as desync with a seed and a delta": "desync with a seed",
			} {
				if got[delta].bytes >= got[without].bytes {
					t.Errorf("%s: %+v; %s: %+v", delta, got[delta], without, got[without])
				}
			}
		})
	}
}
