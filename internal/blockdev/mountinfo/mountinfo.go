// Package mountinfo reads Linux's table of mounts, /proc/PID/mountinfo (proc(5)), and the layers of an overlay
// in it. It is pure: it opens nothing, and knows nothing of what devices and directories there are.
package mountinfo

import (
	"slices"
	"strconv"
	"strings"
)

// Mount is a line of the table: a directory of a file system, at a place.
type Mount struct {
	Device  string   // MAJOR:MINOR of the file system; its major is 0 if that is on no device, or on several
	Root    string   // the file system's directory that is mounted, "/" for all of it
	Point   string   // where, seen from the root of the process whose table it is
	Kind    string   // ext4, overlay…
	Source  string   // whatever was named as the device: a node, /dev/root, a server, a mere word
	Options []string // the file system's, KEY or KEY=VALUE
}

// Parse reads the table. Lines that are none are left out.
func Parse(text string) []Mount {
	var all []Mount
	for line := range strings.Lines(text) {
		if m, ok := parse(strings.TrimSuffix(line, "\n")); ok {
			all = append(all, m)
		}
	}
	return all
}

// parse reads a line: id, parent, device, root, point, options, tags that may be none, "-", kind, source,
// options.
func parse(line string) (Mount, bool) {
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

// Unescape undoes the \ooo of /proc, which stands for blanks, commas and backslashes in names.
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

// Anonymous says whether the file system's number is not that of a block device.
func (m Mount) Anonymous() bool { return strings.HasPrefix(m.Device, "0:") }

// ReadOnly says whether nothing writes to the file system. The same may be mounted read-only in one place and
// be written through another.
func (m Mount) ReadOnly() bool { return slices.Contains(m.Options, "ro") }

// Layers are an overlay's directories, by the names they had for the process that mounted it.
type Layers struct {
	Lower []string // the topmost first
	Data  []string // below them, with file contents only
	Upper string   // "" if it is read-only
}

// Layers reads the options of an overlay: Documentation/filesystems/overlayfs.rst.
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

// splitLower parts LOWER:LOWER::DATA::DATA.
func splitLower(value string) (lower, data []string) {
	dirs := splitColons(value)
	n := slices.Index(dirs, "")
	if n < 0 {
		return dirs, nil
	}
	return dirs[:n], slices.DeleteFunc(dirs[n:], func(dir string) bool { return dir == "" })
}

// splitColons splits s at its colons. A backslash takes the meaning from what follows it.
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
