// Package childenv is the environment of the programs that cairn starts: its own, without its credentials.
package childenv

import (
	"net/url"
	"os"
	"slices"
	"strings"
)

// credentials are the variables with which cairn authenticates to servers. The names of files and profiles with
// credentials are not among them.
var credentials = []string{
	"CAIRN_BEARER_TOKEN",
	"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY",
	"AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
}

// proxies are the variables that name a proxy, in upper or lower case. Such a URL may have a password.
var proxies = []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}

// Environ returns the environment for a child program: all variables except those with cairn's credentials. The
// URL of a proxy stays, without its user and password.
func Environ() []string {
	var kept []string
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		if slices.Contains(credentials, name) {
			continue
		}
		if slices.Contains(proxies, strings.ToUpper(name)) {
			v = name + "=" + withoutUser(value)
		}
		kept = append(kept, v)
	}
	return kept
}

// withoutUser returns the URL of a proxy without its user and password. A text that is not a URL is cut after its
// last @.
func withoutUser(proxy string) string {
	if !strings.Contains(proxy, "@") {
		return proxy
	}
	if u, err := url.Parse(proxy); err == nil && u.Host != "" {
		u.User = nil
		return u.String()
	}
	return proxy[strings.LastIndex(proxy, "@")+1:]
}
