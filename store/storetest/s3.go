package storetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/signer"

	"cairn/internal/test/need"
)

// S3Options configures an S3Server. The zero value means plain HTTP.
type S3Options struct {
	TLS    bool   // with a certificate for 127.0.0.1, Domain and *.Domain
	Domain string // buckets are also at bucket.Domain
}

// S3Server is a real S3 server, versitygw, over a directory. Its keys are new ones, with root's
// rights.
type S3Server struct {
	Scheme    string
	Host      string // 127.0.0.1 and a port
	AccessKey string
	SecretKey string
	CA        string // the file with the certificate to trust; "" without TLS
	Dir       string // contains a directory for each bucket

	tool   string
	client *http.Client
}

// S3 starts an S3Server on 127.0.0.1 and stops it at the end of the test.
func S3(t testing.TB, o S3Options) *S3Server {
	t.Helper()
	work := t.TempDir()
	s := &S3Server{
		Scheme: "http", AccessKey: "root" + randomHex(4), SecretKey: randomHex(16),
		Dir: filepath.Join(work, "buckets"), tool: need.Tool(t, "versitygw"), client: http.DefaultClient,
	}
	iam := filepath.Join(work, "iam")
	for _, dir := range []string{s.Dir, iam} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"--quiet", "--keep-alive", "--iam-dir", iam, "--iam-cache-disable"}
	if o.Domain != "" {
		args = append(args, "--virtual-domain", o.Domain)
	}
	if o.TLS {
		certificate := newS3Certificate(t, o.Domain)
		s.Scheme, s.CA = "https", certificate.writeFile(t, work)
		s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: certificate.clientConfig()}}
		args = append(args, "--cert", s.CA, "--key", s.CA)
	}
	for range 5 {
		if s.tryStart(t, args) {
			return s
		}
	}
	t.Fatal("versitygw found no port")
	return nil
}

// tryStart starts the server on a port that was free a moment ago, and reports whether it runs.
// The random health path ensures that another server on the port is not mistaken for it.
func (s *S3Server) tryStart(t testing.TB, args []string) bool {
	t.Helper()
	s.Host = freePort(t)
	health := "/" + randomHex(8)
	args = append(args, "--port", s.Host, "--health", health, "posix", s.Dir)
	cmd := exec.Command(s.tool, args...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit status does not matter
		close(ended)
	}()
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		<-ended
	}
	if !s.awaitHealth(health, ended) {
		stop()
		t.Logf("versitygw: %s", output.Bytes())
		return false
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("versitygw: %s", output.Bytes())
		}
	})
	return true
}

// awaitHealth requests path until the server answers with 200, for about a minute. It reports
// whether the server did.
func (s *S3Server) awaitHealth(path string, ended chan struct{}) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 3000 {
		answer, err := s.client.Get(s.Scheme + "://" + s.Host + path)
		if err == nil {
			_ = answer.Body.Close() // the body is not used
			if answer.StatusCode == http.StatusOK {
				return true
			}
		}
		select {
		case <-ended:
			return false
		case <-tick.C:
		}
	}
	return false
}

// Location returns the location of a store in a bucket, addressed by path. query begins with a
// question mark, or is "".
func (s *S3Server) Location(bucketAndPrefix, query string) string {
	return "s3+" + s.Scheme + "://" + s.Host + "/" + bucketAndPrefix + query
}

// Bucket makes a bucket.
func (s *S3Server) Bucket(t testing.TB, name string) {
	t.Helper()
	s.Do(t, http.MethodPut, "/"+name, nil)
}

// User makes a user without any permissions.
func (s *S3Server) User(t testing.TB, access, secret string) {
	t.Helper()
	s.Admin(t, "create-user", "--access", access, "--secret", secret, "--role", "user")
}

// Admin runs a command of versitygw's admin tool.
func (s *S3Server) Admin(t testing.TB, args ...string) {
	t.Helper()
	args = append([]string{
		"admin", "--allow-insecure", "--access", s.AccessKey, "--secret", s.SecretKey,
		"--endpoint-url", s.Scheme + "://" + s.Host,
	}, args...)
	if out, err := exec.Command(s.tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("versitygw admin: %v: %s", err, out)
	}
}

// Do sends a request as root and fails the test unless it succeeds. The path may have a query.
func (s *S3Server) Do(t testing.TB, method, path string, body []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, s.Scheme+"://"+s.Host+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	request.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	answer, err := s.client.Do(signer.SignV4(*request, s.AccessKey, s.SecretKey, "", "us-east-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode >= 300 {
		t.Fatalf("%s %s: %s: %s", method, path, answer.Status, text)
	}
}

func randomHex(n int) string {
	p := make([]byte, n)
	_, _ = rand.Read(p) // never fails
	return hex.EncodeToString(p)
}

func freePort(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// s3Certificate is a self-signed certificate, which is its own authority.
type s3Certificate struct {
	parsed *x509.Certificate
	key    []byte
}

func newS3Certificate(t testing.TB, domain string) s3Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "a private authority"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	if domain != "" {
		template.DNSNames = []string{domain, "*." + domain}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c := s3Certificate{}
	if c.parsed, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if c.key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c s3Certificate) clientConfig() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(c.parsed)
	return &tls.Config{RootCAs: roots}
}

// writeFile writes the certificate and its key to a file and returns its path.
func (c s3Certificate) writeFile(t testing.TB, dir string) string {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.parsed.Raw})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: c.key})...)
	path := filepath.Join(dir, "certificate.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
