package main

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/internal/daemon"
)

// listening is where serve takes connections.
type listening struct {
	texts      []string
	addresses  []daemon.Address
	socketMode modeFlag
	printURIs  bool
	silent     bool // print no URIs of inherited sockets, unless a flag says so: their owner knows them
}

func (f *listening) add(c *cobra.Command) {
	f.socketMode = 0o600
	c.Flags().StringArrayVar(&f.texts, "listen", nil,
		"`address` to listen on: unix:PATH or tcp:HOST:PORT; repeatable (default: a unix socket in the runtime directory)")
	c.Flags().Var(&f.socketMode, "socket-mode", "permissions of unix sockets; who may write may connect")
	c.Flags().BoolVar(&f.printURIs, "print-uri", true,
		"print the exports' URIs on stdout, and nothing else (default: unless the sockets were inherited)")
	c.Flags().Lookup("print-uri").DefValue = "" // the help says it in words
	check(c, func([]string) error {
		for _, text := range f.texts {
			a, err := parseAddress("--listen", text)
			if err != nil {
				return err
			}
			f.addresses = append(f.addresses, a)
		}
		f.silent = !c.Flags().Changed("print-uri")
		return nil
	})
}

// parseAddress parses an address that a flag has.
func parseAddress(flag, text string) (daemon.Address, error) {
	a, err := daemon.ParseAddress(text)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", flag, text, err)
	}
	return a, err
}

// modeFlag is a flag that takes permissions in octal.
type modeFlag fs.FileMode

func (f *modeFlag) String() string { return fmt.Sprintf("%#o", uint32(*f)) }
func (f *modeFlag) Type() string   { return "mode" }

func (f *modeFlag) Set(text string) error {
	n, err := strconv.ParseUint(text, 8, 9)
	if err != nil {
		return fmt.Errorf("%q is not a mode (such as 0600, 0660)", text)
	}
	*f = modeFlag(n)
	return nil
}

// open returns the inherited sockets and opens those of --listen. Without either it opens one in a new private
// directory, which cleanUp removes.
func (f *listening) open(ctx context.Context) (listeners []net.Listener, cleanUp func(), err error) {
	listeners, err = daemon.Inherited()
	if err != nil {
		return nil, nil, err
	}
	if len(listeners) == 0 && len(f.addresses) == 0 {
		return daemon.ListenPrivately(ctx, fs.FileMode(f.socketMode))
	}
	f.printURIs = f.printURIs && (len(listeners) == 0 || !f.silent)
	opened, err := daemon.Listen(ctx, fs.FileMode(f.socketMode), f.addresses...)
	if err != nil {
		daemon.CloseAll(listeners)
		return nil, nil, err
	}
	return append(listeners, opened...), func() {}, nil
}
