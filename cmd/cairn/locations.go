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
func locationFlag(into *locate.Location) funcFlag {
	return funcFlag{"location", "", func(text string) (err error) {
		if text == "" {
			return errors.New("a location is empty")
		}
		*into, err = parseLocation(text)
		return err
	}}
}

// locationsFlag returns a repeatable flag that takes a location.
func locationsFlag(into *[]locate.Location) funcFlag {
	return funcFlag{"location", "", func(text string) error {
		var one locate.Location
		err := locationFlag(&one).Set(text)
		*into = append(*into, one)
		return err
	}}
}

// parseLocation parses a location. /dev/stdin and /dev/stdout are "-".
func parseLocation(text string) (locate.Location, error) {
	return locate.Parse(openfile.Standard(openfile.Standard(text, openfile.Stdin), openfile.Stdout))
}

// parseStores parses A|B, the locations of stores with the same content.
func parseStores(text string) ([]locate.Location, error) {
	group, err := locate.ParseGroup(text)
	if err == nil && slices.ContainsFunc(group, locate.Location.IsStream) {
		err = errors.New("a store is a directory or a URL, not stdin or stdout; a directory of that name is ./-")
	}
	return group, err
}

// groupsFlag returns a repeatable flag that takes the locations of stores with the same content, A|B.
func groupsFlag(into *[][]locate.Location) funcFlag {
	return funcFlag{"location", "", func(text string) error {
		group, err := parseStores(text)
		*into = append(*into, group)
		return err
	}}
}

// indexArg adds the parsing of the first argument as the location of an index.
func indexArg(c *cobra.Command, into *locate.Location) {
	addCheck(c, func(args []string) (err error) {
		*into, err = parseIndex(args[0])
		return err
	})
}

// indexArgs adds the parsing of the arguments from number first on as locations of indexes.
func indexArgs(c *cobra.Command, into *[]locate.Location, first int) {
	addCheck(c, func(args []string) error {
		for _, text := range args[first:] {
			l, err := parseIndex(text)
			if err != nil {
				return err
			}
			*into = append(*into, l)
		}
		return nil
	})
}

func parseIndex(text string) (locate.Location, error) {
	l, err := parseLocation(text)
	if err == nil && text == "" {
		err = errors.New("the location of an index is empty")
	}
	if err != nil {
		return l, fmt.Errorf("index %s: %w", hideURLs(text), err)
	}
	return l, nil
}

// storeArgs adds the parsing of the first n arguments as groups of stores.
func storeArgs(c *cobra.Command, into *[][]locate.Location, n int) {
	addCheck(c, func(args []string) error {
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

// onlyStore returns the store of a group of one. A second store is an error, since one store is written.
func onlyStore(what string, group []locate.Location) (locate.Location, error) {
	if len(group) != 1 {
		return locate.Location{}, fmt.Errorf(`%s: one store is written, and A|B names %d (\| is a | in a name)`, what, len(group))
	}
	return group[0], nil
}

func joinLocations(all []locate.Location, separator string) string {
	texts := make([]string, len(all))
	for i, l := range all {
		texts[i] = l.String()
	}
	return strings.Join(texts, separator)
}

// localArg refuses a URL and the empty text as the argument number n, which may be missing.
func localArg(c *cobra.Command, n int, name string) {
	addCheck(c, func(args []string) error {
		switch {
		case len(args) <= n:
			return nil
		case args[n] == "":
			return fmt.Errorf("%s is empty", name)
		case locate.IsURL(args[n]):
			return fmt.Errorf("%s is a file or device on this machine, and not a URL", name)
		}
		return nil
	})
}

var urlPattern = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://`)

// hideURLs cuts text at the first URL in it, which may contain a secret.
func hideURLs(text string) string {
	if at := urlPattern.FindStringIndex(text); at != nil {
		return text[:at[1]] + "…"
	}
	return text
}

// checkLocalFlags refuses URLs as values of flags that name files and directories of this machine.
func checkLocalFlags(c *cobra.Command, _ []string) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		kind := f.Value.Type()
		if (kind == "string" || kind == "stringArray") && strings.Contains(f.Value.String(), "://") {
			err = usageError{fmt.Errorf("--%s names something on this machine, and not a URL", f.Name)}
		}
	})
	return err
}

// flagError returns the error about a flag without the URLs in its value, which may contain a secret.
func flagError(_ *cobra.Command, err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usageError{errors.New(hideURLs(err.Error()))}
	}
	name, value, cause := invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(err)
	parsed := slices.Contains([]string{"location", "seed", "address"}, invalid.GetFlag().Value.Type()) // without quotes
	switch {
	case !parsed && !urlPattern.MatchString(value):
		return usageError{err}
	case !parsed:
		cause = errors.New(hideURLs(cause.Error())) // it may quote the value
	}
	return usageError{fmt.Errorf("--%s %q: %w", name, hideURLs(value), cause)}
}
