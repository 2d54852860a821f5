package update

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// bootRig is a boot backend with the files of its boot loader.
type bootRig struct {
	*Machinery
	dir string
	// try does what the boot loader does when it boots a slot on trial.
	try func(t *testing.T, slot string)
}

// newBootRig returns a machine that has slot a only, as an installer leaves it.
func newBootRig(t *testing.T, backend string) *bootRig {
	t.Helper()
	r := &bootRig{dir: t.TempDir(), Machinery: &Machinery{Messages: os.Stderr, Config: &Config{
		Slots: []Slot{{Name: "a"}, {Name: "b"}}, Boot: BootConfig{Backend: backend},
	}}}
	cmdline := r.write(t, "cmdline", "root=/dev/vda2 cairn.slot=b quiet\n")
	r.Boot.Env = map[string]string{"CAIRN_CMDLINE": cmdline}
	switch backend {
	case "grub":
		block := filepath.Join(r.dir, "grubenv")
		runTool(t, need.Tool(t, "grub-editenv"), block, "create")
		r.Boot.Env["CAIRN_GRUBENV"] = block
		r.try = func(t *testing.T, slot string) {
			out := runTool(t, "grub-editenv", block, "list")
			if left := regexp.MustCompile(`cairn_state_` + slot + `=([0-9])`).FindStringSubmatch(out); left != nil {
				runTool(t, "grub-editenv", block, "set", fmt.Sprintf("cairn_state_%s=%d", slot, number(t, left[1])-1))
			}
		}
	case "u-boot":
		uBootRig(t, r)
	case "systemd-boot":
		r.Boot.Env["CAIRN_ESP"] = r.dir
		r.write(t, "loader/cairn/a.conf", "title a\nlinux /a/linux\noptions cairn.slot=a\n")
		r.write(t, "loader/cairn/b.conf", "title b\nefi /EFI/cairn/b.efi\n")
		r.write(t, "loader/entries/cairn-a.conf", "title a\nlinux /a/linux\nsort-key cairn\nversion 1\n")
		r.try = func(t *testing.T, slot string) {
			for _, file := range glob(t, filepath.Join(r.dir, "loader/entries/cairn-"+slot+"+*.conf")) {
				counts := regexp.MustCompile(`\+([0-9])(?:-([0-9]))?\.conf$`).FindStringSubmatch(file)
				left, done := number(t, counts[1])-1, 1
				if counts[2] != "" {
					done = number(t, counts[2]) + 1
				}
				if err := os.Rename(file, strings.TrimSuffix(file, counts[0])+fmt.Sprintf("+%d-%d.conf", left, done)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return r
}

// uBootRig puts the environment of a U-Boot into a file.
func uBootRig(t *testing.T, r *bootRig) {
	need.Tool(t, "fw_setenv")
	env := r.write(t, "env", strings.Repeat("\xff", 2<<14))
	config := r.write(t, "fw_env.config", fmt.Sprintf("%s 0 0x4000\n%s 0x4000 0x4000\n", env, env))
	defaults := r.write(t, "defaults", "bootdelay=2\n")
	bin := filepath.Join(r.dir, "bin")
	for _, tool := range []string{"fw_setenv", "fw_printenv"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		r.write(t, "bin/"+tool, "#!/bin/sh\nexec "+path+" -c "+config+" -f "+defaults+` "$@"`+"\n")
		if err := os.Chmod(filepath.Join(bin, tool), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.Boot.Env["PATH"] = bin + ":" + os.Getenv("PATH")
	r.try = func(t *testing.T, slot string) {
		left := number(t, strings.TrimSpace(runTool(t, filepath.Join(bin, "fw_printenv"), "-n", "BOOT_"+slot+"_LEFT")))
		runTool(t, filepath.Join(bin, "fw_setenv"), "BOOT_"+slot+"_LEFT", strconv.Itoa(left-1))
	}
}

func (r *bootRig) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// expect fails unless the boot loader would try a slot first, and passes over just the bad ones.
func (r *bootRig) expect(t *testing.T, when, primary string, bad ...string) {
	t.Helper()
	ctx := context.Background()
	got, err := r.PrimarySlot(ctx)
	if err != nil || got != primary {
		t.Errorf("%s: the primary slot is %q, want %s: %v", when, got, primary, err)
	}
	for _, slot := range []string{"a", "b"} {
		if is, err := r.IsSlotBad(ctx, slot); err != nil || is != slices.Contains(bad, slot) {
			t.Errorf("%s: slot %s is bad: %v, %v", when, slot, is, err)
		}
	}
}

// TestBackends: each boot backend, with the tools of its boot loader, tells what the loader would do, in a life of updates.
func TestBackends(t *testing.T) {
	for _, backend := range BackendNames() {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			r, ctx := newBootRig(t, backend), context.Background()
			do := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			if current, err := r.CurrentSlot(ctx); err != nil || current != "b" {
				t.Errorf("the current slot is %q: %v", current, err)
			}
			for range 2 { // each verb may be repeated
				do("marking b as bad", r.MarkSlot(ctx, "b", false))
				r.expect(t, "with a only", "a", "b")
			}
			do("marking a as good", r.MarkSlot(ctx, "a", true))
			r.expect(t, "with a only", "a", "b")
			for range 2 {
				do("trying b", r.SetPrimarySlot(ctx, "b"))
				r.expect(t, "before the trial", "b")
			}
			for n := range 3 {
				r.expect(t, fmt.Sprint("before trial ", n+1), "b")
				r.try(t, "b")
			}
			r.expect(t, "after three trials", "a", "b")
			do("marking b as bad", r.MarkSlot(ctx, "b", false))
			do("trying b", r.SetPrimarySlot(ctx, "b"))
			r.try(t, "b")
			r.expect(t, "on trial", "b")
			for range 2 {
				do("marking b as good", r.MarkSlot(ctx, "b", true))
				r.expect(t, "confirmed", "b")
			}
			do("going back to a", r.SetPrimarySlot(ctx, "a"))
			r.expect(t, "back", "a")
			do("marking a as good", r.MarkSlot(ctx, "a", true))
			do("going to b", r.SetPrimarySlot(ctx, "b"))
			r.expect(t, "forth", "b")
			do("marking b as bad", r.MarkSlot(ctx, "b", false))
			r.expect(t, "given up", "a", "b")
			if _, err := r.callBackend(ctx, "set-state", "a", "maybe"); err == nil {
				t.Error("an unknown state is accepted")
			}
			if _, err := r.callBackend(ctx, "explode"); err == nil {
				t.Error("an unknown verb is accepted")
			}
			r.Slots = []Slot{{Name: "x"}, {Name: "y"}}
			if slot, err := r.CurrentSlot(ctx); err == nil {
				t.Errorf("the current slot is %q, which the machine does not have", slot)
			}
		})
	}
}

// cutTools are the programs of a backend that change files.
var cutTools = []string{"mv", "rm", "dd", "mkdir", "grub-editenv", "fw_setenv", "sync"}

// TestBackendCuts: a backend that is killed at any of its changes leaves the boot loader with one of its two choices, and its
// repetition leads to the wanted one.
func TestBackendCuts(t *testing.T) {
	type change struct {
		name          string
		before, do    func(r *bootRig, ctx context.Context) error
		from, to      string
		badBefore     []string
		badAfterwards []string
	}
	changes := []change{
		{"trying b", func(r *bootRig, ctx context.Context) error { return r.MarkSlot(ctx, "b", false) },
			func(r *bootRig, ctx context.Context) error { return r.SetPrimarySlot(ctx, "b") }, "a", "b", []string{"b"}, nil},
		{"confirming b", func(r *bootRig, ctx context.Context) error { return r.SetPrimarySlot(ctx, "b") },
			func(r *bootRig, ctx context.Context) error { return r.MarkSlot(ctx, "b", true) }, "b", "b", nil, nil},
		{"giving b up", func(r *bootRig, ctx context.Context) error { return r.SetPrimarySlot(ctx, "b") },
			func(r *bootRig, ctx context.Context) error { return r.MarkSlot(ctx, "b", false) }, "b", "a", nil, []string{"b"}},
	}
	for _, backend := range BackendNames() {
		for _, c := range changes {
			t.Run(backend+" "+c.name, func(t *testing.T) {
				t.Parallel()
				ctx := context.Background()
				for n, cut := 1, true; cut; n++ {
					r := newBootRig(t, backend)
					if err := c.before(r, ctx); err != nil {
						t.Fatal(err)
					}
					r.expect(t, "before", c.from, c.badBefore...)
					cut = r.cutAt(t, n, func() error { return c.do(r, ctx) })
					if primary, err := r.PrimarySlot(ctx); err != nil || primary != c.from && primary != c.to {
						t.Errorf("cut at change %d: the primary slot is %q: %v", n, primary, err)
					}
					if bad, err := r.IsSlotBad(ctx, "a"); bad || err != nil {
						t.Errorf("cut at change %d: slot a is bad: %v, %v", n, bad, err)
					}
					if err := c.do(r, ctx); err != nil {
						t.Fatalf("cut at change %d, and repeated: %v", n, err)
					}
					r.expect(t, fmt.Sprintf("cut at change %d, and repeated", n), c.to, c.badAfterwards...)
					if n > 50 {
						t.Fatal("it has no end")
					}
				}
			})
		}
	}
}

// cutAt runs a change. The backend is killed before its change number n, if it has as many, and cutAt reports whether.
func (r *bootRig) cutAt(t *testing.T, n int, change func() error) (cut bool) {
	t.Helper()
	shims, count := filepath.Join(r.dir, "shims"), r.write(t, "count", "0\n")
	old, had := r.Boot.Env["PATH"]
	if !had {
		old = os.Getenv("PATH")
	}
	for _, tool := range cutTools {
		path := ""
		for _, dir := range filepath.SplitList(old) {
			if _, err := os.Stat(filepath.Join(dir, tool)); err == nil {
				path = filepath.Join(dir, tool)
				break
			}
		}
		if path == "" {
			continue
		}
		r.write(t, "shims/"+tool, fmt.Sprintf("#!/bin/sh\nread n <%s\necho $((n + 1)) >%s\n[ $((n + 1)) != %d ] || { kill -9 $PPID; exit 1; }\nexec %s \"$@\"\n",
			count, count, n, path))
		if err := os.Chmod(filepath.Join(shims, tool), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.Boot.Env["PATH"] = shims + ":" + old
	err := change()
	r.Boot.Env["PATH"] = old
	made, readErr := os.ReadFile(count)
	if readErr != nil {
		t.Fatal(readErr)
	}
	cut = number(t, strings.TrimSpace(string(made))) >= n
	if !cut && err != nil {
		t.Fatalf("not cut: %v", err)
	}
	return cut
}
