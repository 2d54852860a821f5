package s3

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"cairn/internal/plaintext"
	"cairn/store"
)

// Lookup is the position of a bucket's name in a request.
type Lookup string

// The ways to address a bucket.
const (
	LookupAuto Lookup = ""     // dns at AWS where the name allows it, else path
	LookupPath Lookup = "path" // https://host/bucket/object
	LookupDNS  Lookup = "dns"  // https://bucket.host/object
)

// Location is the location of a store: s3://bucket/prefix at AWS, or at the endpoint that the
// environment names, or s3+http://host/bucket/prefix and s3+https://host/bucket/prefix anywhere.
type Location struct {
	Scheme  string // of the endpoint, http or https; "" means AWS or the environment's endpoint
	Host    string // of the endpoint, with its port; "" as Scheme
	Bucket  string
	Prefix  string // of all names, a clean relative path; "" means the whole bucket
	Region  string // "" means the environment's or the server's
	Lookup  Lookup
	Profile string // in the shared credentials files; "" means the environment's
	Slash   bool   // written with a trailing slash, so certainly a directory
}

var (
	bucketPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	regionPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	hostPattern   = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)(:[0-9]{1,5})?$`)
)

// Parse parses a location. Its errors contain neither a password nor the value of an option.
func Parse(location string) (Location, error) {
	u, err := store.ParseURL(location)
	switch {
	case err != nil:
		return Location{}, err
	case u.User != nil:
		return Location{}, errors.New("an S3 location holds no keys: " +
			"give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in a profile of ~/.aws/credentials")
	case u.Fragment != "" || strings.HasSuffix(location, "#"):
		return Location{}, errors.New("an S3 location has no #fragment: write %23 for a # in a name")
	case u.Opaque != "":
		return Location{}, errors.New("an S3 location needs // after its scheme")
	}
	l, err := parsePlace(u)
	if err != nil {
		return Location{}, err
	}
	err = l.parseOptions(u.RawQuery)
	return l, err
}

// parsePlace parses everything but the options.
func parsePlace(u *url.URL) (l Location, err error) {
	bucket, prefix := u.Host, u.Path
	switch u.Scheme {
	case "s3":
	case "s3+http", "s3+https":
		l.Scheme, l.Host = strings.TrimPrefix(u.Scheme, "s3+"), u.Host
		if !hostPattern.MatchString(l.Host) {
			return l, fmt.Errorf("%s needs a host: %s://host/bucket/prefix", u.Scheme, u.Scheme)
		}
		bucket, prefix, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		prefix = "/" + prefix
	default:
		return l, errors.New("not an S3 location (s3://bucket/prefix, s3+https://host/bucket/prefix)")
	}
	l.Bucket = bucket
	if !bucketPattern.MatchString(bucket) {
		return l, fmt.Errorf("%q is not a bucket's name (3 to 63 letters, digits, dots and hyphens)", bucket)
	}
	l.Prefix = strings.TrimSuffix(strings.TrimPrefix(prefix, "/"), "/")
	l.Slash = l.Prefix != "" && strings.HasSuffix(prefix, "/")
	if l.Prefix != "" {
		err = store.CheckName(l.Prefix)
	}
	return l, err
}

func (l *Location) parseOptions(query string) error {
	options, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("the options after ? are not a valid URL query")
	}
	for name, values := range options {
		if len(values) > 1 {
			return fmt.Errorf("the option %s is given twice", toPrintable(name))
		}
		if err := l.setOption(name, values[0]); err != nil {
			return err
		}
	}
	return nil
}

func (l *Location) setOption(name, value string) error {
	switch name {
	case "region":
		l.Region = value
		if !regionPattern.MatchString(value) {
			return errors.New("the option region is not a region's name")
		}
	case "lookup":
		l.Lookup = Lookup(strings.TrimPrefix(value, "auto"))
		if l.Lookup != LookupAuto && l.Lookup != LookupPath && l.Lookup != LookupDNS || value == "" {
			return errors.New("the option lookup is path, dns or auto")
		}
	case "profile":
		l.Profile = value
		if value == "" || toPrintable(value) != value {
			return errors.New("the option profile is not a profile's name")
		}
	default:
		return fmt.Errorf("unknown option %s (region, lookup, profile)", toPrintable(name))
	}
	return nil
}

// String returns the location in its canonical spelling.
func (l Location) String() string {
	options := url.Values{}
	for name, value := range map[string]string{
		"region": l.Region, "lookup": string(l.Lookup), "profile": l.Profile,
	} {
		if value != "" {
			options.Set(name, value)
		}
	}
	u := l.urlOf("")
	u.RawQuery = options.Encode()
	return u.String()
}

// urlOf returns the location of an object, or of the store if name is "", without options.
func (l Location) urlOf(name string) *url.URL {
	key := l.keyOf(name)
	if l.Host == "" {
		return &url.URL{Scheme: "s3", Host: l.Bucket, Path: strings.TrimSuffix("/"+key, "/")}
	}
	return &url.URL{Scheme: "s3+" + l.Scheme, Host: l.Host, Path: path.Join("/", l.Bucket, key)}
}

// keyOf returns the S3 key of an object.
func (l Location) keyOf(name string) string { return path.Join(l.Prefix, name) }

// Split returns the location of the directory that contains an object, and the object's name in it.
func (l Location) Split() (dir Location, name string, err error) {
	if l.Prefix == "" || l.Slash {
		return Location{}, "", fmt.Errorf("%s does not end in a file's name", l.urlOf(""))
	}
	parent, name := path.Split(l.Prefix)
	l.Prefix = strings.TrimSuffix(parent, "/")
	return l, name, nil
}

// Join returns the location of a name in the directory.
func (l Location) Join(name string) Location {
	l.Prefix, l.Slash = l.keyOf(name), false
	return l
}

// TrimSlash returns the location without the slash at its end.
func (l Location) TrimSlash() Location {
	l.Slash = false
	return l
}

// Public returns the location without its options.
func (l Location) Public() string { return l.urlOf("").String() }

// toPrintable returns text from a server in a form that is safe to show.
func toPrintable(text string) string { return plaintext.Clean(text, 200) }
