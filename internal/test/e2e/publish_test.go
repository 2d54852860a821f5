package e2e

import (
	"encoding/json"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/netlab"
	"cairn/store/storetest"
)

// s3Keys sets the credentials of a server in the environment.
func s3Keys(t *testing.T, server *storetest.S3Server) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey,
		"S3_ACCESS_KEY": server.AccessKey, "S3_SECRET_KEY": server.SecretKey, "S3_REGION": "us-east-1",
	} {
		t.Setenv(name, value)
	}
}

// publication is the output of make --json.
type publication struct {
	Chunks   int   `json:"chunks"`
	New      int64 `json:"new_chunks"`
	Distinct int64 `json:"distinct"`
}

// TestPublishIntoS3: if the previous release is there, make sends the new chunks and the index, and almost no other
// request. With CAIRN_IMAGES these are real releases.
func TestPublishIntoS3(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	for _, p := range published(t) {
		t.Run(p.name, func(t *testing.T) {
			proxy, through := newLink(t, "http://"+server.Host, netlab.Link{}, nil)
			dir := "s3+" + through + "/images/" + p.name
			var last netlab.Counts
			publish := func(index, image string, flags ...string) (publication, map[string]int64) {
				got := cairn(t, append([]string{"make", dir + "/" + index, image, "--json"}, flags...)...)
				var made publication
				if err := json.Unmarshal([]byte(got), &made); err != nil {
					t.Fatal(err)
				}
				now := proxy.Counts()
				methods := map[string]int64{}
				for method, n := range now.Methods {
					methods[method] = n - last.Methods[method]
				}
				last = now
				t.Logf("%s: %d chunks, %d of them new; requests: %v", index, made.Chunks, made.New, methods)
				return made, methods
			}
			const control = 8 // requests about the bucket, the index, its gc root and the lease
			check := func(what string, made publication, methods map[string]int64) {
				t.Helper()
				if puts := methods["PUT"]; puts < made.New+1 || puts > made.New+1+control {
					t.Errorf("%s: %d PUTs for %d new chunks and an index", what, puts, made.New)
				}
				if most := max(int64(made.Chunks)/100, control); methods["HEAD"] > most {
					t.Errorf("%s: %d HEADs for %d chunks, want %d at most", what, methods["HEAD"], made.Chunks, most)
				}
			}
			a, methods := publish("a.caibx", p.a)
			check("a into an empty store", a, methods)
			b, methods := publish("b.caibx", p.b)
			check("b where a is", b, methods)
			if b.New == 0 || b.New >= b.Distinct {
				t.Errorf("b has %d new chunks of %d: the releases have nothing in common, or all", b.New, b.Distinct)
			}
			again, methods := publish("b2.caibx", p.b)
			check("b again", again, methods)
			if again.New != 0 {
				t.Errorf("b again: %d new chunks, want none", again.New)
			}
			based, methods := publish("b3.caibx", p.b, "--base", dir+"/b.caibx")
			if methods["PUT"] != 3 || based.New != 0 {
				t.Errorf("b on the base of b: %d PUTs, %d new chunks, want a lease, the gc root and the index", methods["PUT"], based.New)
			}
			out := filepath.Join(t.TempDir(), "out")
			cairn(t, "assemble", dir+"/b.caibx", out)
			wantSame(t, out, p.b)
			fails(t, 5, "exists already", "make", dir+"/b.caibx", p.b, "--create-only")
		})
	}
}

// published returns the releases to publish, which are real ones if there are any.
func published(t *testing.T) []pair {
	images := os.Getenv("CAIRN_IMAGES")
	if images == "" {
		return []pair{small(t)}
	}
	var all []pair
	for _, kind := range []string{"squashfs", "ext4"} {
		all = append(all, pair{kind, filepath.Join(images, "a."+kind), filepath.Join(images, "b."+kind)})
	}
	return all
}

// TestPublishThroughFaults: a release is published completely to a server that fails in all ways, or make reports the
// fault and there is no index.
func TestPublishThroughFaults(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nginx")
	seed := faultSeed(t)
	p := small(t)
	for _, kind := range netlab.AllFaults() {
		t.Run(kind.String(), func(t *testing.T) {
			if kind == netlab.Silent && os.Getenv("CAIRN_LONG") == "" {
				t.Skip("each silence takes half a minute")
			}
			t.Parallel()
			root := t.TempDir()
			inner, err := url.Parse(storetest.Nginx(t, root, storetest.WebDAV))
			if err != nil {
				t.Fatal(err)
			}
			f := netlab.Of(seed, 0.05, kind)
			f.Drip = 50 * time.Millisecond
			faulty := newFaultyBefore(t, httputil.NewSingleHostReverseProxy(inner), f)
			got := run(t, "cairn", "make", faulty.url+"/x.caibx", p.b, "--chunk-size", "4:16:64", "--patience", "20s")
			_, published := os.Stat(filepath.Join(root, "x.caibx"))
			switch {
			case got.status == 0:
				out := filepath.Join(t.TempDir(), "out")
				cairn(t, "assemble", filepath.Join(root, "x.caibx"), out)
				wantSame(t, out, p.b)
			case !strings.Contains(got.stderr, "cairn: error: "):
				t.Errorf("exit status %d without an error:\n%s", got.status, got.stderr)
			case published == nil:
				t.Errorf("exit status %d, and the index is there", got.status)
			}
			t.Logf("%d faults in %d requests; exit status %d", faulty.Total(), faulty.Requests(), got.status)
		})
	}
}
