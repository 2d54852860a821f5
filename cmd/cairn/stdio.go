package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/blob/deploy"
	"cairn/internal/openfile"
	"cairn/store/locate"
)

// dash means stdin or stdout wherever a file is read or written as a whole; ./- is a file of that name. Only one part of
// a command may use each of them.
const dash = openfile.Dash

const stdin, stdout = openfile.Stdin, openfile.Stdout

// misuse is an error of usage that is found after the command line was checked.
type misuse struct{ text string }

func (e misuse) Error() string { return e.text }

// users are the parts of a command line that read stdin or write to stdout.
type users struct{ in, out []string }

func (u *users) reads(what, location string) {
	if openfile.Standard(location, stdin) == dash {
		u.in = append(u.in, what)
	}
}

func (u *users) readsAt(what string, l locate.Location) {
	if l.IsStream() {
		u.in = append(u.in, what)
	}
}

func (u *users) writes(what, location string) {
	if openfile.Standard(location, stdout) == dash {
		u.prints(what, true)
	}
}

func (u *users) prints(what string, does bool) {
	if does {
		u.out = append(u.out, what)
	}
}

// checkStdio refuses a second user of stdin or stdout.
func checkStdio(c *cobra.Command, find func(u *users, args []string)) {
	check(c, func(args []string) error {
		var u users
		find(&u, args)
		switch {
		case len(u.in) > 1:
			return fmt.Errorf("%s are both to be read from stdin; only one can be", strings.Join(u.in[:2], " and "))
		case len(u.out) > 1:
			return fmt.Errorf("%s both go to stdout; only one can", strings.Join(u.out[:2], " and "))
		}
		return nil
	})
}

// takesDash is the annotation of flags that name files whose value may be "-".
const takesDash = "cairn_takes_dash"

// takeDash lets a flag have the value "-".
func takeDash(c *cobra.Command, name string) {
	if err := c.Flags().SetAnnotation(name, takesDash, nil); err != nil {
		panic(err)
	}
}

// refuseDashes has all commands refuse "-" as the value of flags that name a file which is not a stream, or a directory.
// Flags that take locations say themselves which of these they take.
func refuseDashes(root *cobra.Command) {
	for _, c := range root.Commands() {
		refuseDashes(c)
		check(c, func([]string) (err error) {
			c.Flags().Visit(func(f *pflag.Flag) {
				if _, may := f.Annotations[takesDash]; !may && hasDash(f.Value) {
					err = fmt.Errorf("--%s -: it is not read from stdin or written to stdout; a file of that name is ./-", f.Name)
				}
			})
			return err
		})
	}
}

// hasDash reports whether a flag's value is "-", or HOST=-.
func hasDash(v pflag.Value) bool {
	values := []string{v.String()}
	if list, ok := v.(pflag.SliceValue); ok {
		values = list.GetSlice()
	}
	for _, value := range values {
		if value == dash || strings.HasSuffix(value, "="+dash) {
			return true
		}
	}
	return false
}

// checkSeeds refuses seeds that cannot be read at any place.
func checkSeeds(seeds []deploy.Place) error {
	for _, s := range seeds {
		if s.Path == dash {
			return errors.New("--seed -: a seed is read at any place, which stdin does not allow; a file of that name is ./-")
		}
		if info, err := os.Stat(s.Path); err == nil && info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return fmt.Errorf("--seed %s: a seed is read at any place, which a pipe does not allow", s.Path)
		}
	}
	return nil
}
