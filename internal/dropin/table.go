package dropin

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// tool is what this package knows of casync or desync.
type tool struct {
	name     string
	version  string // as the tool prints it
	commands []command
	flags    []flag
	prefixes bool // long flags may be shortened, as getopt_long does
	lists    bool // a repeatable flag takes several values between commas
}

// command is a row of the table: a command, and what becomes of it.
type command struct {
	name        string
	args        string // as the help shows them
	least, most int    // number of arguments
	becomes     string // the command of cairn, for the documentation
	instead     string // what to do instead; the command is refused
	translate   func(*line) error
}

// flag is a row of the table: a flag of some commands, and what becomes of it.
type flag struct {
	name, short string
	value       string // the kind of its value; "" for a switch
	many        bool   // each value counts, not only the last one
	on          string // names of the commands that have it; "" for all
	becomes     string // what becomes of it, for the documentation

	to      string // the flag of cairn that takes the value unchanged
	ignored bool   // becomes gives the reason
	refused bool   // becomes says what to do instead
	handled bool   // the command's translate reads it
}

func (f *flag) isOn(command string) bool {
	return f.on == "" || slices.Contains(strings.Fields(f.on), command)
}

func (t *tool) find(name string) *command {
	for i := range t.commands {
		if t.commands[i].name == name {
			return &t.commands[i]
		}
	}
	return nil
}

func (t *tool) unknownCommand(name string) error {
	return fmt.Errorf("unknown command %q; '%s --help' lists the commands", name, t.name)
}

// parse parses a command line. Flags and arguments are in any order, and "--" ends the flags.
func (t *tool) parse(args []string) (*line, error) {
	l := &line{command: &command{}, tls: map[string]string{}}
	l.call.Env = map[string]string{}
	if t.prefixes { // every flag is a flag of every command
		l.flags = t.flagSet(nil)
		if err := l.flags.Parse(args); err != nil {
			return nil, err
		}
		l.args = l.flags.Args()
		if len(l.args) > 0 {
			name := l.args[0]
			if l.command, l.args = t.find(name), l.args[1:]; l.command == nil {
				return nil, t.unknownCommand(name)
			}
		}
		return l, nil
	}
	at := t.commandAt(args)
	if at < len(args) {
		if l.command = t.find(args[at]); l.command == nil {
			return nil, t.unknownCommand(args[at])
		}
		args = slices.Concat(args[:at], args[at+1:])
	}
	l.flags = t.flagSet(l.command)
	if l.command.instead != "" {
		l.flags.ParseErrorsAllowlist.UnknownFlags = true
	}
	err := l.flags.Parse(args)
	l.args = l.flags.Args()
	return l, err
}

// commandAt returns the index of the command, which may stand behind flags that all commands have.
func (t *tool) commandAt(args []string) int {
	for i := 0; i < len(args); i++ {
		name, isLong := strings.CutPrefix(args[i], "--")
		takesNext := func(f flag) bool { return f.name == name && f.on == "" && f.value != "" }
		switch {
		case !strings.HasPrefix(args[i], "-"):
			return i
		case isLong && slices.ContainsFunc(t.flags, takesNext):
			i++ // its value
		}
	}
	return len(args)
}

// flagSet returns the flags of a command, or all flags for a nil command.
func (t *tool) flagSet(c *command) *pflag.FlagSet {
	s := pflag.NewFlagSet(t.name, pflag.ContinueOnError)
	s.SortFlags = false
	for _, f := range t.flags {
		switch {
		case c != nil && !f.isOn(c.name):
		case f.value == "":
			s.BoolP(f.name, f.short, false, "")
		case f.many && t.lists:
			s.StringSliceP(f.name, f.short, nil, "")
		default:
			s.StringArrayP(f.name, f.short, nil, "")
		}
	}
	if t.prefixes {
		s.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
			return pflag.NormalizedName(t.complete(name))
		})
	}
	return s
}

// complete returns the name of the only flag that begins with a text, or the text.
func (t *tool) complete(text string) string {
	var names []string
	for _, f := range t.flags {
		switch {
		case f.name == text:
			return text
		case strings.HasPrefix(f.name, text):
			names = append(names, f.name)
		}
	}
	if len(names) == 1 {
		return names[0]
	}
	return text
}

// applyTable translates the flags whose rows say everything about them.
func (l *line) applyTable(t *tool) (err error) {
	l.flags.Visit(func(given *pflag.Flag) {
		at := slices.IndexFunc(t.flags, func(f flag) bool {
			return f.name == given.Name && (t.prefixes || f.isOn(l.command.name))
		})
		switch f := &t.flags[at]; {
		case f.value == "BOOL" && !slices.Contains(booleans, strings.ToLower(l.value(f.name))):
			err = fmt.Errorf("--%s=%s: want yes or no", f.name, l.value(f.name))
		case !f.isOn(l.command.name):
			l.note("--%s has no effect on %s %s", f.name, t.name, l.command.name)
		case f.refused && l.value(f.name) != "false":
			err = fmt.Errorf("--%s is not supported: %s", f.name, f.becomes)
		case f.ignored:
			l.note("--%s is ignored: %s", f.name, f.becomes)
		case f.to != "" && f.many:
			for _, value := range l.values(f.name) {
				l.add(f.to + "=" + value)
			}
		case f.to != "":
			l.add(f.to + "=" + l.value(f.name))
		}
	})
	return err
}
