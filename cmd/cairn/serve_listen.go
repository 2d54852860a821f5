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

// listening holds the flags of serve's sockets.
type listening struct {
	addresses  []daemon.Address
	socketMode fs.FileMode
	printURIs  bool
	silent     bool // print no URIs of inherited sockets, since --print-uri is not set and their owner knows them
}

func (f *listening) addFlags(c *cobra.Command) {
	f.socketMode = 0o600
	c.Flags().Var(addressFlag(&f.addresses), "listen",
		"`address` to listen on: unix:PATH or tcp:HOST:PORT; repeatable (default: a unix socket in the runtime directory)")
	c.Flags().Var(modeFlag(&f.socketMode), "socket-mode", "permissions of unix sockets; users with write permission can connect")
	c.Flags().BoolVar(&f.printURIs, "print-uri", true,
		"print the URIs of the exports on stdout (default: unless the sockets were inherited)")
	c.Flags().Lookup("print-uri").DefValue = "" // the usage states the default
	addCheck(c, func([]string) error {
		f.silent = !c.Flags().Changed("print-uri")
		return nil
	})
}

// addressFlag returns a repeatable flag that takes addresses.
func addressFlag(into *[]daemon.Address) funcFlag {
	return funcFlag{"address", "", func(text string) error {
		a, err := daemon.ParseAddress(text)
		*into = append(*into, a)
		return err
	}}
}

// modeFlag returns a flag whose value is permissions in octal.
func modeFlag(into *fs.FileMode) funcFlag {
	return funcFlag{"mode", fmt.Sprintf("%#o", uint32(*into)), func(text string) error {
		n, err := strconv.ParseUint(text, 8, 9)
		if err != nil {
			return fmt.Errorf("%q is not a mode (such as 0600, 0660)", text)
		}
		*into = fs.FileMode(n)
		return nil
	}}
}

// openListeners returns the inherited sockets and opens those of --listen. Without either it opens one in a new private
// directory, which cleanUp removes.
func (f *listening) openListeners(ctx context.Context) (listeners []net.Listener, cleanUp func(), err error) {
	listeners, err = daemon.Inherited()
	if err != nil {
		return nil, nil, err
	}
	if len(listeners) == 0 && len(f.addresses) == 0 {
		return daemon.ListenPrivately(ctx, f.socketMode)
	}
	f.printURIs = f.printURIs && (len(listeners) == 0 || !f.silent)
	opened, err := daemon.Listen(ctx, f.socketMode, f.addresses...)
	if err != nil {
		daemon.CloseAll(listeners)
		return nil, nil, err
	}
	return append(listeners, opened...), func() {}, nil
}
