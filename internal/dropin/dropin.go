// Package dropin translates the command lines of casync and desync into command lines of cairn. It knows the flags
// of both programs, and nothing of how cairn does its work. It reads desync's configuration, the manifest of RAUC
// beside an index, and directories of seeds. It looks at files to tell images from directories and devices. It runs
// nothing and prints nothing.
package dropin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Casync and Desync are the tools whose command lines are translated.
const (
	Casync = "casync"
	Desync = "desync"
)

// Call is the call of cairn for a command line of a tool.
type Call struct {
	Args    []string          // the arguments of cairn
	Text    string            // is printed on stdout instead of running cairn, if it is not empty
	Output  string            // the file that takes the place of stdout; "" is none
	Stderr  bool              // stdout is stderr
	Env     map[string]string // variables of the environment: keys for S3
	Headers []Header          // for the requests to servers
	Digest  *Digest           // is printed on stdout when cairn has ended; nil is none
	Mended  bool              // the exit status that says that damage was removed is a success
	Notes   []string          // what was ignored, and why
	Verbose bool              // the command line asks for messages about what is done
}

// Digest is the digest of an image, as casync prints it.
type Digest struct {
	Path      string // a file or device; "" for the stdout of cairn
	Size      int64  // of the image, if it is not the whole file or device
	Algorithm string // "" for casync's default
}

// ToolOf returns the tool that a program name names, or "".
func ToolOf(name string) string {
	if base := filepath.Base(name); base == Casync || base == Desync {
		return base
	}
	return ""
}

// Translate translates the arguments of a tool. version is the version of cairn. An error says what to do instead.
func Translate(tool string, args []string, version string) (Call, error) {
	t := &casync
	if tool == Desync {
		t = &desync
	}
	l, err := t.parse(args)
	if err != nil {
		return Call{}, err
	}
	switch {
	case l.given("help") || l.command.name == "help":
		about := l.command
		if about.name == "help" && len(l.args) > 0 {
			if about = t.find(l.args[0]); about == nil {
				return Call{}, t.unknownCommand(l.args[0])
			}
		}
		l.call.Text = t.help(about)
		return l.call, nil
	case l.given("version") || l.command.name == "version":
		l.call.Text = fmt.Sprintf("%s (cairn %s)\n", t.version, version)
		return l.call, nil
	case l.command.name == "":
		l.call.Text = t.help(l.command)
		if tool == Casync {
			return Call{}, errors.New("no command is given; 'casync --help' lists them")
		}
		return l.call, nil
	case l.command.instead != "":
		return Call{}, fmt.Errorf("%s is not supported: %s", l.command.name, l.command.instead)
	}
	l.call.Verbose = l.given("verbose")
	if err := l.applyTable(t); err != nil {
		return Call{}, err
	}
	if n := len(l.args); n < l.command.least || n > l.command.most {
		return Call{}, fmt.Errorf("want '%s %s %s'", tool, l.command.name, l.command.args)
	}
	err = l.command.translate(l)
	return l.call, err
}

// line is a parsed command line.
type line struct {
	command *command
	args    []string
	flags   *pflag.FlagSet
	call    Call

	// what desync's flags and configuration say of the stores
	attempts     *int           // nil if neither says it
	pause        *time.Duration // before the second attempt
	tls          map[string]string
	uncompressed bool
}

// given reports whether a flag is on the command line.
func (l *line) given(name string) bool {
	f := l.flags.Lookup(name)
	return f != nil && f.Changed
}

// values returns the values of a flag in their order.
func (l *line) values(name string) []string {
	f := l.flags.Lookup(name)
	switch {
	case f == nil || !f.Changed:
		return nil
	case f.Value.Type() == "bool":
		return []string{f.Value.String()}
	}
	return f.Value.(pflag.SliceValue).GetSlice()
}

// value returns the last value of a flag, or "".
func (l *line) value(name string) string {
	if all := l.values(name); len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

// isOn reports whether a switch is on.
func (l *line) isOn(name string) bool { return l.value(name) == "true" }

// arg returns an argument, or "-" if it is not given.
func (l *line) arg(n int) string {
	if n < len(l.args) {
		return l.args[n]
	}
	return "-"
}

func (l *line) add(args ...string) { l.call.Args = append(l.call.Args, args...) }

func (l *line) note(format string, args ...any) {
	l.call.Notes = append(l.call.Notes, fmt.Sprintf(format, args...))
}

// run begins the call of a command of cairn. The flags that were added go behind it, and its arguments at the end.
func (l *line) run(command string, args ...string) {
	for i, arg := range args {
		if strings.HasPrefix(arg, "-") && arg != "-" {
			args[i] = "./" + arg
		}
	}
	if writesStore(command) && !slices.Contains(l.call.Args, "--index-only") {
		l.add("--gc-root=managed") // casync and desync leave nothing beside a store
	}
	l.call.Args = slices.Concat(strings.Fields(command), l.call.Args, args)
}

func writesStore(command string) bool {
	return slices.Contains([]string{"make", "store add", "store copy"}, command)
}

// refuseSameFile refuses to write to a path that leads to the file of the index, or to make an index in the place of its
// image. casync and desync lose the file.
func refuseSameFile(index, path string) error {
	if index == "-" || path == "-" {
		return nil
	}
	info, err := os.Stat(index)
	if index == path || err == nil && info.Mode().IsRegular() && isSameDevice(index, path) {
		return fmt.Errorf("the index and %s are the same file", path)
	}
	return nil
}

// addSeed adds a seed with an index, or without one. The target itself is left out: what it holds is used anyway.
func (l *line) addSeed(path, index, target string) {
	if isSameDevice(path, target) {
		l.note("the seed %s is ignored: it is the target, which is used without a flag", path)
		return
	}
	l.add("--seed=" + seedPlace(path, index))
}

// plainPath returns the text with which cairn names the file of a path. In cairn's own texts, some characters and words
// name partitions, stdin and stdout.
func plainPath(path string) string {
	if strings.HasPrefix(path, "PARTLABEL=") || strings.HasPrefix(path, "PARTUUID=") || path == "@root" {
		path = "./" + path
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	return escapeByte(path, '#')
}

// seedPlace returns the text with which cairn names a seed with an index. An empty index is none.
func seedPlace(path, index string) string {
	path = plainPath(path)
	if index == "" {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		return escapeByte(path, '=')
	}
	if !strings.Contains(index, "://") {
		index = escapeByte(index, '=')
	}
	return escapeByte(path, '=') + "=" + index
}

// escapeByte returns text with backslashes that make a separator an ordinary character, as package escape reads it.
func escapeByte(text string, separator byte) string {
	var out strings.Builder
	backslashes := 0
	for i := range len(text) {
		if text[i] == separator {
			out.WriteString(strings.Repeat(`\`, backslashes+1))
		}
		out.WriteByte(text[i])
		if text[i] == '\\' {
			backslashes++
		} else {
			backslashes = 0
		}
	}
	return out.String()
}
