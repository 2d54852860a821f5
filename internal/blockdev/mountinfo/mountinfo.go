// Package mountinfo parses Linux's table of mounts, /proc/PID/mountinfo (proc(5)), and the layers of an overlay
// in it. It works on text only: it opens no file and does not look at devices or directories.
package mountinfo

import (
	"slices"
	"strconv"
	"strings"
)

// Mount is a line of the table: a directory of a file system, mounted at a path.
type Mount struct {
	Device  string   // MAJOR:MINOR of the file system; MAJOR is 0 if it lies on no block device or on several
	Root    string   // the mounted directory of the file system, "/" for all of it
	Point   string   // the mount point, seen from the root of the process that the table belongs to
	Kind    string   // ext4, overlay…
	Source  string   // the device named at mount time: a node, /dev/root, a server, or any word
	Options []string // of the file system, KEY or KEY=VALUE
}

// Parse parses the table. It leaves out malformed lines.
func Parse(text string) []Mount {
	var all []Mount
	for line := range strings.Lines(text) {
		if m, ok := parseLine(strings.TrimSuffix(line, "\n")); ok {
			all = append(all, m)
		}
	}
	return all
}

// parseLine parses a line: id, parent, device, root, point, options, optional tags, "-", kind, source, options.
func parseLine(line string) (Mount, bool) {
	left, right, _ := strings.Cut(line, " - ")
	l, r := strings.Split(left, " "), strings.Split(right, " ")
	if len(l) < 6 || len(r) < 3 || !isDevice(l[2]) {
		return Mount{}, false
	}
	m := Mount{Device: l[2], Root: Unescape(l[3]), Point: Unescape(l[4]), Kind: Unescape(r[0]), Source: Unescape(r[1])}
	for option := range strings.SplitSeq(r[2], ",") { // a comma that is part of a value is escaped
		m.Options = append(m.Options, Unescape(option))
	}
	return m, strings.HasPrefix(m.Point, "/")
}

func isDevice(s string) bool {
	major, minor, _ := strings.Cut(s, ":")
	_, err1 := strconv.ParseUint(major, 10, 32)
	_, err2 := strconv.ParseUint(minor, 10, 32)
	return err1 == nil && err2 == nil
}

// Unescape replaces the octal escapes \ooo of /proc, which stand for blanks, commas and backslashes in names.
func Unescape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		if len(s) >= 4 && s[0] == '\\' {
			if c, err := strconv.ParseUint(s[1:4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// Anonymous reports whether the file system's device number does not belong to a block device.
func (m Mount) Anonymous() bool { return strings.HasPrefix(m.Device, "0:") }

// ReadOnly reports whether the file system itself is read-only. A file system can be mounted read-only at one
// path and be written through another; then ReadOnly is false.
func (m Mount) ReadOnly() bool { return slices.Contains(m.Options, "ro") }

// Layers are the directories of an overlay, by the names that they had for the process that mounted it.
type Layers struct {
	Lower []string // the topmost first
	Data  []string // data-only layers below Lower
	Upper string   // "" if the overlay is read-only
}

// Layers parses the options of an overlay: Documentation/filesystems/overlayfs.rst.
func (m Mount) Layers() Layers {
	var l Layers
	for _, option := range m.Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			l.Lower, l.Data = splitLower(value)
		case "lowerdir+":
			l.Lower = append(l.Lower, value)
		case "datadir+":
			l.Data = append(l.Data, value)
		case "upperdir":
			l.Upper = value
		}
	}
	return l
}

// splitLower splits LOWER:LOWER::DATA::DATA.
func splitLower(value string) (lower, data []string) {
	dirs := splitColons(value)
	n := slices.Index(dirs, "")
	if n < 0 {
		return dirs, nil
	}
	return dirs[:n], slices.DeleteFunc(dirs[n:], func(dir string) bool { return dir == "" })
}

// splitColons splits s at its colons. A backslash escapes the next byte.
func splitColons(s string) []string {
	var all []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == ':':
			all = append(all, b.String())
			b.Reset()
			continue
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return append(all, b.String())
}
