package locate

import (
	"fmt"
	"net/http"
	"strings"

	"cairn/internal/rotate"
	"cairn/internal/tlsfiles"
	"cairn/internal/transfer"
	"cairn/store/web"
)

// TokenVariable is the environment variable for a bearer token. Unlike a flag, it is not visible to
// other users.
const TokenVariable = "CAIRN_BEARER_TOKEN"

// Identity names the credentials that authenticate a process to servers, and the authorities that
// authenticate the servers. The zero value has no credentials and uses the system's authorities.
type Identity struct {
	TLS                    tlsfiles.Files
	Token                  string   // value of TokenVariable, a bearer token for all https servers; "" is unset
	Bearer, Basic, Headers []string // [HOST=]FILE
}

// Access reads the files and returns an Access with their credentials. A process calls it once,
// with one reader. Then a file that can be read only once serves every location, and a regular file
// is read again when it is replaced. The same holds for the files of AWS's variables.
func (i Identity) Access(r *rotate.Reader) (Access, error) {
	var a Access
	a.Web.Pool = new(transfer.Pool)
	a.S3.Pool = a.Web.Pool
	err := copyPipedAWSFiles(r)
	if err != nil {
		return a, err
	}
	if a.TLS, err = i.TLS.Config(r); err != nil {
		return a, err
	}
	if i.Token != "" {
		c, err := web.FromText(web.Bearer, "", i.Token)
		if err != nil {
			return a, fmt.Errorf("%s: %w", TokenVariable, err)
		}
		a.Web.Credentials = append(a.Web.Credentials, c)
	}
	for _, kind := range []struct {
		form  func(string) (http.Header, error)
		files []string
	}{{web.Bearer, i.Bearer}, {web.Basic, i.Basic}, {web.Headers, i.Headers}} {
		for _, text := range kind.files {
			host, file := splitHost(text)
			c, err := web.FromFile(r, kind.form, host, file)
			if err != nil {
				return a, fmt.Errorf("reading credentials: %w", err)
			}
			a.Web.Credentials = append(a.Web.Credentials, c)
		}
	}
	return a, nil
}

// splitHost splits [HOST=]FILE. Text with a slash is not a host.
func splitHost(text string) (host, file string) {
	host, file, ok := strings.Cut(text, "=")
	if !ok || strings.Contains(host, "/") {
		return "", text
	}
	return host, file
}
