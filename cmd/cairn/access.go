package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/rotate"
	"cairn/store"
	"cairn/store/locate"
)

// access are the flags that say how to authenticate to servers, and how long to wait for them. They name files: a secret
// on a command line can be read by everybody on the machine.
type access struct {
	identity locate.Identity
	patience time.Duration
	files    *rotate.Reader                // reads the identity's files
	opened   func() (locate.Access, error) // with what these hold; made once for the whole process
}

func (f *access) add(c *cobra.Command) {
	i, files, flags := &f.identity, new(rotate.Reader), c.Flags()
	f.files = files
	f.opened = sync.OnceValues(func() (locate.Access, error) {
		if err := rereadableAWS(files); err != nil {
			return locate.Access{}, err
		}
		i.Token = os.Getenv(locate.TokenVariable)
		return i.Access(files)
	})
	flags.StringVar(&i.TLS.CA, "ca-cert", "", "trust the authorities in this PEM `file`, and not the system's")
	flags.StringVar(&i.TLS.Cert, "client-cert", "", "show servers the certificate in this PEM `file`")
	flags.StringVar(&i.TLS.Key, "client-key", "", "PEM `file` with the key of --client-cert (default: the same file)")
	flags.StringArrayVar(&i.Bearer, "bearer-token-file", nil,
		"send the token in `[HOST=]FILE` to HOST, or to all https servers; repeatable (or "+locate.TokenVariable+")")
	flags.StringArrayVar(&i.Basic, "basic-auth-file", nil, "send the USER:PASSWORD in `[HOST=]FILE`; repeatable")
	flags.StringArrayVar(&i.Headers, "header-file", nil, "send the header fields in `[HOST=]FILE`, NAME: VALUE on each line; repeatable")
	check(c, func([]string) error {
		if i.TLS.Key != "" && i.TLS.Cert == "" {
			return errors.New("--client-key needs --client-cert")
		}
		return nil
	})
}

// addPatience adds how long a job waits for stores that do not answer.
func (f *access) addPatience(c *cobra.Command) {
	c.Flags().DurationVar(&f.patience, "patience", time.Minute, "how long to wait for stores that do not answer, from the first failure on")
	check(c, func([]string) error {
		if f.patience <= 0 {
			return fmt.Errorf("--patience %v: want more than nothing", f.patience)
		}
		return nil
	})
}

// policy is how long the stores are waited for. What they are waited for is said, but not all the time.
func (f *access) policy() store.Policy {
	const pause = 10 * time.Second
	var mu sync.Mutex
	var said time.Time
	return store.Policy{Patience: f.patience, Waiting: func(failed error, _ time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(said) >= pause {
			said = time.Now()
			say("waiting for an answer: %v", failed)
		}
	}}
}

// open returns access with what the flags name. The files are read the first time, for all locations.
func (f *access) open() (a locate.Access, err error) {
	if f.opened != nil { // else the flags were never added to a command
		a, err = f.opened()
	}
	a.Retry = f.policy()
	return a, err
}

// rereadableAWS points the variables that name AWS's files to copies of those that can be read only once: each bucket
// reads them.
func rereadableAWS(r *rotate.Reader) error {
	for _, variable := range []string{"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		named := os.Getenv(variable)
		if named == "" || !exists(named) {
			continue // whether it is needed is for its readers to say
		}
		path, err := r.Path(named)
		if err == nil && path != named {
			err = os.Setenv(variable, path)
		}
		if err != nil {
			return fmt.Errorf("reading the file that %s names: %w", variable, err)
		}
	}
	return nil
}
