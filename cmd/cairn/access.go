package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/internal/rotate"
	"cairn/store"
	"cairn/store/locate"
)

// access holds the flags that authenticate to servers, and the patience with them. The flags name files, because every
// user of the machine can read a secret on a command line.
type access struct {
	confinement
	identity locate.Identity
	patience time.Duration
	files    *rotate.Reader                // reads the identity's files
	opened   func() (locate.Access, error) // reads the files once for the process
}

func (f *access) addFlags(c *cobra.Command) {
	i, files, flags := &f.identity, new(rotate.Reader), c.Flags()
	f.files = files
	f.opened = sync.OnceValues(func() (locate.Access, error) {
		i.Token = os.Getenv(locate.TokenVariable)
		return i.Access(files)
	})
	flags.StringVar(&i.TLS.CA, "ca-cert", "", "trust the authorities in this PEM `file` instead of the system's")
	flags.StringVar(&i.TLS.Cert, "client-cert", "", "authenticate to servers with the certificate in this PEM `file`")
	flags.StringVar(&i.TLS.Key, "client-key", "", "PEM `file` with the key of --client-cert (default: the same file)")
	flags.StringArrayVar(&i.Bearer, "bearer-token-file", nil,
		"send the token in `[HOST=]FILE` to HOST, or to all https servers; repeatable (or "+locate.TokenVariable+")")
	flags.StringArrayVar(&i.Basic, "basic-auth-file", nil, "send the USER:PASSWORD in `[HOST=]FILE`; repeatable")
	flags.StringArrayVar(&i.Headers, "header-file", nil, "send the header fields in `[HOST=]FILE`, one NAME: VALUE per line; repeatable")
	addCheck(c, func([]string) error {
		if i.TLS.Key != "" && i.TLS.Cert == "" {
			return errors.New("--client-key needs --client-cert")
		}
		return nil
	})
}

// addPatience adds the flag for how long a job waits for unreachable stores.
func (f *access) addPatience(c *cobra.Command) {
	c.Flags().DurationVar(&f.patience, "patience", time.Minute,
		"how long to wait for stores that do not answer, from the first failure on")
	addCheck(c, func([]string) error {
		if f.patience <= 0 {
			return fmt.Errorf("--patience %v: want more than 0", f.patience)
		}
		return nil
	})
}

// openAccess returns the access to locations with the credentials of the flags.
func (f *access) openAccess() (a locate.Access, err error) {
	if f.opened != nil { // nil if the flags were not added to a command
		a, err = f.opened()
	}
	a.Retry = f.retryPolicy()
	a.SFTP.Starter = f.starter
	return a, err
}

// retryPolicy returns the policy of retries. It prints the cause of a wait at most every 10 s.
func (f *access) retryPolicy() store.Policy {
	const pause = 10 * time.Second
	var mu sync.Mutex
	var printed time.Time
	return store.Policy{Patience: f.patience, Waiting: func(failed error, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(printed) >= pause {
			printed = time.Now()
			logf("waiting for an answer: %v", failed)
		}
	}}
}

// releaseAccess returns the access to indexes and profiles.
func (f *access) releaseAccess() release.Access {
	return release.Access{Locate: f.openAccess, Stdin: func(ctx context.Context) io.Reader { return openfile.NewReader(ctx, os.Stdin) }}
}
