package dropin

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// raucConfigs are the places of RAUC's configuration, in the order in which RAUC looks for it.
var raucConfigs = []string{"/etc/rauc/system.conf", "/run/rauc/system.conf", "/usr/lib/rauc/system.conf"}

// addSlotSeeds adds the other slots of the target's class as seeds, if RAUC has called desync for the target. RAUC itself
// gives casync such a seed, and desync none. A configuration that cannot be read is not an error: the seeds save
// downloads, no more.
func (l *line) addSlotSeeds(index, target string) {
	if len(l.values("seed")) > 0 || len(l.values("seed-dir")) > 0 || !hasManifest(index) {
		return
	}
	configs := raucConfigs
	if given := configOfParent(fmt.Sprintf("/proc/%d", os.Getppid())); given != "" {
		configs = []string{given}
	}
	for _, name := range configs {
		text, err := readSmall(name)
		if err != nil {
			continue
		}
		for _, seed := range otherSlots(text, target) {
			l.add("--seed=" + seedPlace(seed, ""))
			l.note("%s is a seed: it is a slot of the same class in %s", seed, name)
		}
		return
	}
}

// hasManifest reports whether a manifest of RAUC lies beside an index.
func hasManifest(index string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(index), manifestName))
	return err == nil && index != "-" && !strings.Contains(index, "://")
}

// configOfParent returns the configuration that is on the command line of a process that is RAUC, or "". proc is the
// directory of the process in /proc.
func configOfParent(proc string) string {
	text, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(bytes.TrimSuffix(text, []byte{0})), "\x00")
	if filepath.Base(args[0]) != "rauc" {
		return ""
	}
	name := ""
	for i, arg := range args {
		switch value, ok := strings.CutPrefix(arg, "--conf="); {
		case ok:
			name = value
		case (arg == "--conf" || arg == "-c") && i+1 < len(args):
			name = args[i+1]
		}
	}
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(proc, "cwd", name)
}

// otherSlots returns the devices of the slots that are of the same class as the target, and exist.
func otherSlots(config []byte, target string) (devices []string) {
	sections, err := parseKeyFile(config)
	if err != nil {
		return nil
	}
	class := ""
	slots := map[string][]string{} // devices by class, in the order of the configuration
	for _, s := range sections.Sections() {
		name, isSlot := strings.CutPrefix(s.Name(), "slot.")
		device := s.Key("device").String()
		if !isSlot || device == "" {
			continue
		}
		of, _, _ := strings.Cut(name, ".")
		if isSameDevice(device, target) {
			class = of
		} else if _, err := os.Stat(device); err == nil {
			slots[of] = append(slots[of], device)
		}
	}
	return slots[class]
}

// isSameDevice reports whether two names are of the same file or block device.
func isSameDevice(a, b string) bool {
	var one, other unix.Stat_t
	if unix.Stat(a, &one) != nil || unix.Stat(b, &other) != nil {
		return false
	}
	if one.Mode&unix.S_IFMT == unix.S_IFBLK && other.Mode&unix.S_IFMT == unix.S_IFBLK {
		return one.Rdev == other.Rdev
	}
	return one.Dev == other.Dev && one.Ino == other.Ino
}
