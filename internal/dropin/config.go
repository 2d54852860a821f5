package dropin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
)

// config is desync's configuration: what applies to the stores and indexes whose locations a pattern matches.
type config struct {
	Keys    map[string]s3Keys       `json:"s3-credentials"` // by scheme://host[:port]
	Options map[string]storeOptions `json:"store-options"`
}

type s3Keys struct {
	AccessKey string `json:"access-key"`
	SecretKey string `json:"secret-key"`
	File      string `json:"aws-credentials-file"`
	Profile   string `json:"aws-profile"`
	Region    string `json:"aws-region"`
}

type storeOptions struct {
	ClientCert    string         `json:"client-cert"`
	ClientKey     string         `json:"client-key"`
	CACert        string         `json:"ca-cert"`
	TrustInsecure bool           `json:"trust-insecure"`
	Authorization string         `json:"http-auth"`
	Cookie        string         `json:"http-cookie"`
	Retries       *int           `json:"error-retry"`
	Pause         *time.Duration `json:"error-retry-base-interval"` // nanoseconds
	Uncompressed  bool           `json:"uncompressed"`
	Encryption    bool           `json:"encryption"`
}

// Header is a header field with a secret, for the requests to one host.
type Header struct{ Host, Field string }

// readConfig reads the configuration of --config, or of the default place if there is one.
func (l *line) readConfig() (c config, err error) {
	name, home := l.value("config"), os.Getenv("HOME")
	if name == "" {
		if home == "" {
			return c, nil
		}
		name = filepath.Join(home, ".config", "desync", "config.json")
	}
	text, err := readSmall(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && l.value("config") == "" {
			return c, nil
		}
		return c, fmt.Errorf("--config: %w", err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("reading %s: %w", name, err)
	}
	return c, nil
}

// find returns the options of a location. Two patterns that match it are an error, as in desync.
func (c config) find(location string) (found storeOptions, err error) {
	n := 0
	for pattern, options := range c.Options {
		if matchLocation(pattern, location) {
			found = options
			n++
		}
	}
	if n > 1 {
		err = fmt.Errorf("--config: several store-options match %s", withoutUser(location))
	}
	return found, err
}

// matchLocation reports whether a pattern of path.Match matches a location. A slash at the end does not count, and
// paths are compared as absolute paths.
func matchLocation(pattern, location string) bool {
	if strings.Contains(location, "://") {
		matched, _ := path.Match(strings.TrimSuffix(pattern, "/"), strings.TrimSuffix(location, "/"))
		return matched
	}
	pattern, err1 := filepath.Abs(pattern)
	location, err2 := filepath.Abs(location)
	matched, err := path.Match(pattern, location)
	return matched && errors.Join(err, err1, err2) == nil
}

// withoutUser returns a location without user and password.
func withoutUser(location string) string {
	if u, err := url.Parse(location); err == nil && u.Host != "" {
		u.User = nil
		return u.Redacted()
	}
	return location
}

// applyConfig translates what the configuration says about the stores and indexes of the command line.
func (l *line) applyConfig(locations ...string) error {
	c, err := l.readConfig()
	if err != nil {
		return err
	}
	for _, at := range locations {
		o, err := c.find(at)
		if err != nil {
			return err
		}
		if err := l.applyOptions(at, o); err != nil {
			return err
		}
		if err := l.applyKeys(c, at); err != nil {
			return err
		}
	}
	for _, name := range []string{"ca-cert", "client-cert", "client-key"} {
		if value := l.tls[name]; value != "" {
			l.add("--" + name + "=" + value)
		}
	}
	return nil
}

// applyOptions translates the options of one location. Flags precede them.
func (l *line) applyOptions(at string, o storeOptions) error {
	if o.Encryption {
		return fmt.Errorf("--config: the encrypted chunks of %s are not supported: "+
			"copy them with the real 'desync cache' into a store without encryption", withoutUser(at))
	}
	if !l.given("trust-insecure") && o.TrustInsecure {
		if err := refuseInsecure(at); err != nil {
			return err
		}
	}
	files := map[string]string{"ca-cert": o.CACert, "client-cert": o.ClientCert, "client-key": o.ClientKey}
	for name, value := range files {
		switch {
		case value == "" || l.given(name):
		case l.tls[name] != "" && l.tls[name] != value:
			return fmt.Errorf("--config: the stores have different values of %s, and cairn uses one for all: "+
				"use one of the stores at a time", name)
		default:
			l.tls[name] = value
		}
	}
	if o.Retries != nil && !l.given("error-retry") && (l.attempts == nil || *l.attempts < *o.Retries) {
		l.attempts = o.Retries
	}
	if o.Pause != nil && !l.given("error-retry-base-interval") && (l.pause == nil || *l.pause < *o.Pause) {
		l.pause = o.Pause
	}
	if strings.ContainsFunc(o.Authorization+o.Cookie, unicode.IsControl) {
		return errors.New("--config: http-auth and http-cookie are header fields of one line")
	}
	if u, err := url.Parse(at); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		l.addHeader(u.Host, "Authorization", o.Authorization)
		l.addHeader(u.Host, "Cookie", o.Cookie)
	}
	l.uncompressed = l.uncompressed || o.Uncompressed
	return nil
}

// addHeader adds a header field for a host, unless it is there or empty.
func (l *line) addHeader(host, name, value string) {
	h := Header{host, name + ": " + value}
	if value != "" && !slices.Contains(l.call.Headers, h) {
		l.call.Headers = append(l.call.Headers, h)
	}
}

// applyKeys translates the keys of a location in S3. The environment precedes the configuration, and desync's own
// variables precede those of AWS.
func (l *line) applyKeys(c config, at string) error {
	u, err := url.Parse(at)
	if err != nil || !strings.HasPrefix(u.Scheme, "s3+") {
		return nil
	}
	if os.Getenv("S3_ACCESS_KEY") != "" || os.Getenv("S3_SECRET_KEY") != "" {
		return l.setEnv(map[string]string{
			"AWS_ACCESS_KEY_ID": os.Getenv("S3_ACCESS_KEY"), "AWS_SECRET_ACCESS_KEY": os.Getenv("S3_SECRET_KEY"),
			"AWS_SESSION_TOKEN": os.Getenv("S3_SESSION_TOKEN"), "AWS_REGION": os.Getenv("S3_REGION"),
		})
	}
	keys := c.Keys[strings.TrimPrefix(u.Scheme, "s3+")+"://"+u.Host]
	switch env := map[string]string{"AWS_REGION": keys.Region}; {
	case os.Getenv("AWS_ACCESS_KEY_ID") != "":
		return nil
	case keys.AccessKey != "":
		env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"] = keys.AccessKey, keys.SecretKey
		return l.setEnv(env)
	default:
		env["AWS_SHARED_CREDENTIALS_FILE"], env["AWS_PROFILE"] = keys.File, keys.Profile
		return l.setEnv(env)
	}
}

// setEnv adds variables of the environment. Empty ones are left out.
func (l *line) setEnv(variables map[string]string) error {
	for name, value := range variables {
		switch old, is := l.call.Env[name]; {
		case value == "":
		case is && old != value:
			return errors.New("--config: the stores have different keys for S3, and cairn uses one for all: " +
				"use one of the stores at a time")
		default:
			l.call.Env[name] = value
		}
	}
	return nil
}

// refuseInsecure refuses a server whose certificate is not to be checked.
func refuseInsecure(at string) error {
	if strings.HasPrefix(at, "https://") || strings.HasPrefix(at, "s3+https://") {
		return errors.New("a server whose certificate is not checked is not supported: " +
			"name its authority with --ca-cert FILE")
	}
	return nil
}
