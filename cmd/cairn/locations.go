package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"cairn/internal/openfile"
	"cairn/store/locate"
)

// locationFlag returns a flag that takes a location.
func locationFlag(into *locate.Location) pflag.Value {
	return funcFlag{"location", func(text string) (err error) {
		if text == "" {
			return errors.New("a location is empty")
		}
		*into, err = parseLocation(text)
		return err
	}}
}

// parseLocation reads a location. /dev/stdin and /dev/stdout are "-".
func parseLocation(text string) (locate.Location, error) {
	return locate.Parse(openfile.Standard(openfile.Standard(text, stdin), stdout))
}

// parseStores reads the locations of stores that stand in for each other.
func parseStores(text string) ([]locate.Location, error) {
	group, err := locate.ParseGroup(text)
	if err == nil && slices.ContainsFunc(group, locate.Location.IsStream) {
		err = errors.New("a store is a directory or a URL, not stdin or stdout; a directory of that name is ./-")
	}
	return group, err
}

// groupsFlag returns a repeatable flag that takes the locations of stores that stand in for each other, A|B.
func groupsFlag(into *[][]locate.Location) pflag.Value {
	return funcFlag{"location", func(text string) error {
		group, err := parseStores(text)
		*into = append(*into, group)
		return err
	}}
}

// indexArgs adds the parsing of the arguments from number lo on, and before hi unless it is 0, as locations of indexes.
func indexArgs(c *cobra.Command, into *[]locate.Location, lo, hi int) {
	check(c, func(args []string) error {
		if hi == 0 || hi > len(args) {
			hi = len(args)
		}
		for _, text := range args[min(lo, hi):hi] {
			l, err := parseLocation(text)
			if err == nil && text == "" {
				err = errors.New("the location of an index is empty")
			}
			if err != nil {
				return fmt.Errorf("index %s: %w", hideURLs(text), err)
			}
			*into = append(*into, l)
		}
		return nil
	})
}

// storeArgs adds the parsing of the arguments with numbers 0 to n-1 as stores, of which each may be a group.
func storeArgs(c *cobra.Command, into *[][]locate.Location, n int) {
	check(c, func(args []string) error {
		for _, text := range args[:n] {
			group, err := parseStores(text)
			if err != nil {
				return fmt.Errorf("store %s: %w", hideURLs(text), err)
			}
			*into = append(*into, group)
		}
		return nil
	})
}

// onlyStore returns the one store of a group that is written.
func onlyStore(what string, group []locate.Location) (locate.Location, error) {
	if len(group) != 1 {
		return locate.Location{}, fmt.Errorf(`%s: one store is written, and A|B names %d (\| is a | in a name)`, what, len(group))
	}
	return group[0], nil
}

// joinLocations lists locations, for people.
func joinLocations(all []locate.Location, between string) string {
	texts := make([]string, len(all))
	for i, l := range all {
		texts[i] = l.String()
	}
	return strings.Join(texts, between)
}

// localArgs refuses URLs, and nothing at all, as arguments from number lo on that are files or devices of this machine.
func localArgs(c *cobra.Command, lo int, name string) {
	check(c, func(args []string) error {
		for _, text := range args[min(lo, len(args)):] {
			if text == "" {
				return fmt.Errorf("%s is empty", name)
			}
			if isURL(text) {
				return fmt.Errorf("%s is a file or device on this machine, and not a URL", name)
			}
		}
		return nil
	})
}

var urlPattern = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://`)

// isURL reports whether text begins as a URL does.
func isURL(text string) bool {
	at := urlPattern.FindStringIndex(text)
	return at != nil && at[0] == 0
}

// hideURLs cuts text at the first URL in it, which may hold a secret.
func hideURLs(text string) string {
	if at := urlPattern.FindStringIndex(text); at != nil {
		return text[:at[1]] + "…"
	}
	return text
}

// localFlags refuses URLs as values of flags that name files and directories of this machine.
func localFlags(c *cobra.Command, _ []string) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		kind := f.Value.Type()
		if (kind == "string" || kind == "stringArray") && strings.Contains(f.Value.String(), "://") {
			err = usageError{c, fmt.Errorf("--%s names something on this machine, and not a URL", f.Name)}
		}
	})
	return err
}

// flagError is a mistake in a flag. A URL is not repeated, since it may hold a secret.
func flagError(c *cobra.Command, err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usageError{c, errors.New(hideURLs(err.Error()))}
	}
	name, value, cause := invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(err)
	switch kind := invalid.GetFlag().Value.Type(); {
	case !urlPattern.MatchString(value) && kind != "location" && kind != "seed":
		return usageError{c, err}
	case kind != "location" && kind != "seed":
		cause = errors.New(hideURLs(cause.Error())) // it may quote the value
	}
	return usageError{c, fmt.Errorf("--%s %q: %w", name, hideURLs(value), cause)}
}
