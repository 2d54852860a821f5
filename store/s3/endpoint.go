package s3

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"
	"gopkg.in/ini.v1"
)

const defaultRegion = "us-east-1"

// endpoint is an S3 server and the way to address it.
type endpoint struct {
	scheme       string
	host         string // "" means AWS, whose host depends on the region
	bucketInHost bool   // the host name begins with the bucket's name
	region       string // for the signature
	regionFixed  bool   // by the location, so a region named by the server is ignored
}

// awsSettings holds the endpoint settings of the environment and the profile.
type awsSettings struct {
	endpoint, region string
}

// atAWS reports whether the server belongs to AWS.
func (e endpoint) atAWS() bool {
	name := strings.TrimSuffix(e.serverURL("", defaultRegion).Hostname(), ".")
	return strings.HasSuffix(name, ".amazonaws.com") || strings.HasSuffix(name, ".amazonaws.com.cn")
}

// serverURL returns the server's URL, with the bucket's name before the host unless it is "".
func (e endpoint) serverURL(bucket, region string) *url.URL {
	u := &url.URL{Scheme: e.scheme, Host: e.host}
	if u.Host == "" {
		u.Host = "s3." + region + ".amazonaws.com"
		if strings.HasPrefix(region, "cn-") {
			u.Host += ".cn"
		}
	}
	if bucket != "" {
		u.Host = bucket + "." + u.Host
	}
	return u
}

// objectURL returns the URL of an object, or of the bucket if key is "".
func (e endpoint) objectURL(bucket, key, region string) *url.URL {
	if e.bucketInHost {
		u := e.serverURL(bucket, region)
		u.Path = "/" + key
		u.RawPath = s3utils.EncodePath(u.Path)
		return u
	}
	u := e.serverURL("", region)
	u.Path = strings.TrimSuffix("/"+bucket+"/"+key, "/")
	u.RawPath = s3utils.EncodePath(u.Path)
	return u
}

// resolveEndpoint returns the endpoint of a location.
func resolveEndpoint(l Location, settings awsSettings) (endpoint, error) {
	e := endpoint{scheme: l.Scheme, host: l.Host}
	if l.Host == "" {
		e.scheme = "https"
		if err := e.setServer(settings.endpoint); err != nil {
			return e, err
		}
	}
	switch {
	case l.Region != "":
		e.region, e.regionFixed = l.Region, true
	case s3utils.GetRegionFromURL(url.URL{Host: e.host}) != "":
		e.region = s3utils.GetRegionFromURL(url.URL{Host: e.host})
	case settings.region != "":
		e.region = settings.region
	default:
		e.region = defaultRegion
	}
	if !regionPattern.MatchString(e.region) {
		return e, errors.New("the region of AWS_REGION or of the profile is not a region's name")
	}
	e.bucketInHost = l.Lookup == LookupDNS || l.Lookup == LookupAuto && e.atAWS() && fitsDNS(l.Bucket, e.scheme)
	return e, nil
}

// fitsDNS reports whether a bucket's name can be part of a host name. With https it must have no
// dot, since a certificate for *.host covers one label only.
func fitsDNS(bucket, scheme string) bool {
	return bucket == strings.ToLower(bucket) && !strings.Contains(bucket, "_") &&
		(scheme == "http" || !strings.Contains(bucket, "."))
}

// setServer sets the endpoint that the environment or the profile names.
func (e *endpoint) setServer(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !hostPattern.MatchString(u.Host) ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("AWS_ENDPOINT_URL, or endpoint_url in the profile, is not http(s)://host[:port]")
	}
	e.scheme, e.host = u.Scheme, u.Host
	return nil
}

// readSettings reads the settings from the environment and, where that has none, from the profile
// in the shared files.
func readSettings(profile string) (awsSettings, error) {
	s := awsSettings{
		endpoint: cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")),
		region:   cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")),
	}
	profile = cmp.Or(profile, os.Getenv("AWS_PROFILE"), "default")
	config, err := ini.LooseLoad(sharedFile("AWS_CONFIG_FILE", "config"))
	if err != nil {
		return s, fmt.Errorf("reading AWS's configuration file: %s", toPrintable(err.Error()))
	}
	for _, name := range []string{"profile " + profile, profile} {
		if section, err := config.GetSection(name); err == nil {
			s.endpoint = cmp.Or(s.endpoint, section.Key("endpoint_url").String())
			s.region = cmp.Or(s.region, section.Key("region").String())
		}
	}
	if os.Getenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") == "true" {
		s.endpoint = ""
	}
	return s, nil
}

// sharedFile returns the path of one of AWS's shared files, or os.DevNull if there is no home
// directory.
func sharedFile(variable, name string) string {
	if path := os.Getenv(variable); path != "" {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return os.DevNull
	}
	return filepath.Join(home, ".aws", name)
}
