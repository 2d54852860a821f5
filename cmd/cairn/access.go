package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/trust"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/web"
)

// tokenVariable may hold a bearer token. Unlike a flag, a variable is not shown to other users.
const tokenVariable = "CAIRN_BEARER_TOKEN"

// access are the flags that say how to get into servers, and how long to wait for them. They name files: a secret on a command line can be
// read by everybody on the machine.
type access struct {
	tls                    trust.Files
	bearer, basic, headers []string // [HOST=]FILE
	patience               time.Duration
	quiet                  bool // about what is waited for, as somebody else tells
}

func (f *access) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.tls.CA, "ca-cert", "", "trust the authorities in this PEM `file`, and not the system's")
	flags.StringVar(&f.tls.Cert, "client-cert", "", "show servers the certificate in this PEM `file`")
	flags.StringVar(&f.tls.Key, "client-key", "", "PEM `file` with the key of --client-cert (default: the same file)")
	flags.StringArrayVar(&f.bearer, "bearer-token-file", nil,
		"send the token in `[HOST=]FILE` to HOST, or to all https servers; repeatable (or "+tokenVariable+")")
	flags.StringArrayVar(&f.basic, "basic-auth-file", nil, "send the USER:PASSWORD in `[HOST=]FILE`; repeatable")
	flags.StringArrayVar(&f.headers, "header-file", nil, "send the header fields in `[HOST=]FILE`, NAME: VALUE on each line; repeatable")
	check(c, func([]string) error {
		if f.tls.Key != "" && f.tls.Cert == "" {
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
	if f.quiet {
		return store.Policy{Patience: f.patience}
	}
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

// options are what the flags mean to stores. Files that are to be there are read.
func (f *access) options() (locate.Options, error) {
	o := locate.Options{Retry: f.policy()}
	config, err := f.tls.Config()
	if err != nil {
		return o, err
	}
	o.TLS = config
	o.Web.Credentials, err = f.credentials()
	return o, err
}

func (f *access) credentials() ([]*web.Credential, error) {
	var all []*web.Credential
	if token := os.Getenv(tokenVariable); token != "" {
		c, err := web.FromText(web.Bearer, "", token)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tokenVariable, err)
		}
		all = append(all, c)
	}
	for _, kind := range []struct {
		form  web.Form
		files []string
	}{{web.Bearer, f.bearer}, {web.Basic, f.basic}, {web.Headers, f.headers}} {
		for _, text := range kind.files {
			host, file := splitHost(text)
			c, err := web.FromFile(kind.form, host, file)
			if err != nil {
				return nil, fmt.Errorf("reading credentials: %w", err)
			}
			all = append(all, c)
		}
	}
	return all, nil
}

// splitHost parts [HOST=]FILE. What has a slash is no host.
func splitHost(text string) (host, file string) {
	host, file, ok := strings.Cut(text, "=")
	if !ok || strings.Contains(host, "/") {
		return "", text
	}
	return host, file
}

// accessHint is what to try when a server, or we, do not believe who the other is.
func accessHint(err error) string {
	switch {
	case is[x509.UnknownAuthorityError](err):
		return "if the server's authority is your own, name its certificate: --ca-cert FILE"
	case is[x509.HostnameError](err):
		return "use a name that the server's certificate has, or have it issued for this one"
	case is[x509.CertificateInvalidError](err):
		return "check this machine's clock, then the dates of the server's certificate"
	case errors.Is(err, web.ErrNoCertificate):
		return "name one that the server believes: --client-cert FILE --client-key FILE"
	case errors.Is(err, web.ErrScheme):
		return "check whether the location is to begin with https:// or http://"
	}
	return ""
}
