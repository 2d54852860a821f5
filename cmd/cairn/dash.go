package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/internal/openfile"
	"cairn/store/locate"
)

// stdioUsers lists the parts of a command line that read stdin or write to stdout.
type stdioUsers struct{ in, out []string }

// addReader adds part if path is stdin.
func (u *stdioUsers) addReader(part, path string) {
	if openfile.Standard(path, openfile.Stdin) == openfile.Dash {
		u.in = append(u.in, part)
	}
}

// addLocation adds part if l is stdin.
func (u *stdioUsers) addLocation(part string, l locate.Location) {
	if l.IsStream() {
		u.in = append(u.in, part)
	}
}

// addWriter adds part if path is stdout.
func (u *stdioUsers) addWriter(part, path string) {
	u.addPrinter(part, openfile.Standard(path, openfile.Stdout) == openfile.Dash)
}

// addPrinter adds part if it prints to stdout.
func (u *stdioUsers) addPrinter(part string, prints bool) {
	if prints {
		u.out = append(u.out, part)
	}
}

// checkStdioUse refuses a second reader of stdin and a second writer to stdout among the parts that list adds.
func checkStdioUse(c *cobra.Command, list func(u *stdioUsers, args []string)) {
	addCheck(c, func(args []string) error {
		var u stdioUsers
		list(&u, args)
		switch {
		case len(u.in) > 1:
			return fmt.Errorf("%s are both to be read from stdin; only one can be", strings.Join(u.in[:2], " and "))
		case len(u.out) > 1:
			return fmt.Errorf("%s both go to stdout; only one can", strings.Join(u.out[:2], " and "))
		}
		return nil
	})
}

// dashAllowed annotates a flag that names a file and may have the value "-".
const dashAllowed = "cairn_dash_allowed"

func allowDash(c *cobra.Command, name string) {
	if err := c.Flags().SetAnnotation(name, dashAllowed, nil); err != nil {
		panic(err)
	}
}

// refuseDashes makes all commands refuse "-" as the value of a flag, unless the flag is annotated. Flags for locations
// have no value here: they check it when they parse it.
func refuseDashes(root *cobra.Command) {
	for _, c := range root.Commands() {
		refuseDashes(c)
		addCheck(c, func([]string) (err error) {
			c.Flags().Visit(func(f *pflag.Flag) {
				if _, allowed := f.Annotations[dashAllowed]; !allowed && hasDash(f.Value) {
					err = fmt.Errorf("--%s -: it is not read from stdin or written to stdout; a file of that name is ./-", f.Name)
				}
			})
			return err
		})
	}
}

// hasDash reports whether a flag's value is "-" or HOST=-.
func hasDash(v pflag.Value) bool {
	values := []string{v.String()}
	if list, ok := v.(pflag.SliceValue); ok {
		values = list.GetSlice()
	}
	for _, value := range values {
		if value == openfile.Dash || strings.HasSuffix(value, "="+openfile.Dash) {
			return true
		}
	}
	return false
}
