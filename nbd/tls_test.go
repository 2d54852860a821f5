package nbd_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	kind string
}

// newKey makes a key of a kind: ecdsa or rsa.
func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func newAuthority(t testing.TB, kind string) *authority {
	t.Helper()
	key, c := newKey(t, kind), newTemplate("the authority")
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, kind}
}

func (a *authority) certPool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// issueCert returns a new certificate for localhost.
func (a *authority) issueCert(t testing.TB, use x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	key, c := newKey(t, a.kind), newTemplate("localhost")
	c.ExtKeyUsage = []x509.ExtKeyUsage{use}
	c.DNSNames, c.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	if a.kind == "rsa" {
		c.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serverConfig returns a server's configuration. With mutual, clients need certificates.
func (a *authority) serverConfig(t testing.TB, mutual bool) *tls.Config {
	t.Helper()
	config := &tls.Config{Certificates: []tls.Certificate{a.issueCert(t, x509.ExtKeyUsageServerAuth)}, MinVersion: tls.VersionTLS12}
	if mutual {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, a.certPool()
		if a.kind == "rsa" {
			config.MaxVersion = tls.VersionTLS12 // see Server.TLS
		}
	}
	return config
}

func (a *authority) clientConfig() *tls.Config {
	return &tls.Config{RootCAs: a.certPool(), ServerName: "localhost"}
}

// writeCertDir writes the files that libnbd and qemu need as clients, and returns their directory.
// It has the authority and, if issuer is not nil, a certificate from it.
func (a *authority) writeCertDir(t testing.TB, issuer *authority) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) {
		p := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	if issuer == nil {
		return dir
	}
	c := issuer.issueCert(t, x509.ExtKeyUsageClientAuth)
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("client-cert.pem", "CERTIFICATE", c.Certificate[0])
	write("client-key.pem", "PRIVATE KEY", key)
	return dir
}

// TestTLSRequired: without TLS, all options but STARTTLS and ABORT are refused. With TLS, all work.
func TestTLSRequired(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	r := startServer(t, &nbd.Server{TLS: a.serverConfig(t, false)}, twoExports()...)
	c := r.dialClient(t)
	for id := range uint32(13) {
		if id == nbdtest.OptExportName || id == nbdtest.OptAbort || id == nbdtest.OptStartTLS {
			continue
		}
		_, err := c.Option(id, nbdtest.InfoData("one"))
		if got := optionErrorType(t, err); got != nbdtest.RepErrTLSReqd || !strings.Contains(err.Error(), "TLS") {
			t.Errorf("option %d without TLS = %v", id, err)
		}
	}
	_, err := c.Option(nbdtest.OptStartTLS, []byte("x"))
	if got := optionErrorType(t, err); got != nbdtest.RepErrInvalid {
		t.Errorf("STARTTLS with data = %v", err)
	}
	if err := c.StartTLS(a.clientConfig()); err != nil {
		t.Fatal(err)
	}
	_, err = c.Option(nbdtest.OptStartTLS, nil)
	if got := optionErrorType(t, err); got != nbdtest.RepErrInvalid {
		t.Errorf("STARTTLS within TLS = %v", err)
	}
	if list, err := c.List(); err != nil || len(list) != 2 {
		t.Errorf("List with TLS = %v, %v", list, err)
	}
	if _, err := c.ExportName("two"); err != nil {
		t.Error(err)
	}
	if err := c.Disconnect(); err != nil {
		t.Errorf("Disconnect = %v", err)
	}
	if err := r.dialClient(t).Abort(); err != nil {
		t.Errorf("ABORT without TLS: %v", err)
	}
	if _, err := r.dialClient(t).ExportName("one"); !errors.Is(err, io.EOF) {
		t.Errorf("EXPORT_NAME without TLS = %v, want the end", err)
	}
}

// TestTLSInjection: bytes that an attacker inserts behind STARTTLS go to the TLS layer, which
// refuses them, and never to the options.
func TestTLSInjection(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	r := startServer(t, &nbd.Server{TLS: a.serverConfig(t, false)}, twoExports()...)
	for _, injected := range [][]byte{
		nbdtest.OptionBytes(nbdtest.OptList, nil),
		nbdtest.OptionBytes(nbdtest.OptStructuredReply, nil),
		nbdtest.OptionBytes(nbdtest.OptGo, nbdtest.InfoData("one")),
	} {
		conn := r.dialRaw(t)
		conn.Write(append(append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptStartTLS, nil)...), injected...))
		if _, err := io.ReadFull(conn, make([]byte, 18+20)); err != nil { // the greeting, and the ACK of STARTTLS
			t.Fatal(err)
		}
		// The client starts TLS now, but the server has closed the connection.
		err := tls.Client(conn, a.clientConfig()).Handshake()
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("TLS behind %q = %v, want a refusal", injected[:16], err)
		}
	}
}

// TestTLSTransfer reads resident and other data through TLS, small and large, many reads at once.
func TestTLSTransfer(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	d, _ := newImage(t)
	r := startServer(t, &nbd.Server{TLS: a.serverConfig(t, true)}, &nbd.Export{Device: d, MultiConn: true})
	config := a.clientConfig()
	config.Certificates = []tls.Certificate{a.issueCert(t, x509.ExtKeyUsageClientAuth)}
	c := r.dialClient(t)
	if err := errors.Join(c.StartTLS(config), c.StructuredReplies()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	type read struct {
		off, n int
		wait   func(context.Context) (nbdtest.Reply, error)
	}
	var reads []read
	for off := 0; off < len(d.data); off += 333 * kib {
		n := min([]int{1, 4 * kib, 300 * kib, 3 * mib}[len(reads)%4], len(d.data)-off)
		wait, err := c.Start(nbdtest.Request{Offset: uint64(off), Length: uint32(n)})
		if err != nil {
			t.Fatal(err)
		}
		reads = append(reads, read{off, n, wait})
	}
	for _, q := range reads {
		reply, err := q.wait(t.Context())
		if err != nil || !bytes.Equal(reply.Data, d.data[q.off:][:q.n]) {
			t.Errorf("read of %d at %d: %v, or other bytes", q.n, q.off, err)
		}
	}
	if err := c.Disconnect(); err != nil {
		t.Errorf("Disconnect = %v", err)
	}
}

// TestTLSHalfOpen: the handshake's timeout applies to TLS too. Neither the timeout nor the server's
// end waits for a client that is silent after it has started TLS.
func TestTLSHalfOpen(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	half := func(r *rig) net.Conn {
		conn := r.dialRaw(t)
		conn.Write(append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptStartTLS, nil)...))
		conn.Write([]byte{22, 3, 1, 2, 0}) // the header of a record
		if _, err := io.ReadFull(conn, make([]byte, 18+20)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	short := startServer(t, &nbd.Server{TLS: a.serverConfig(t, false), HandshakeTimeout: 500 * time.Millisecond}, twoExports()...)
	if _, err := io.Copy(io.Discard, half(short)); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TLS that goes on for too long ended with %v", err)
	}
	long := startServer(t, &nbd.Server{TLS: a.serverConfig(t, false), HandshakeTimeout: time.Hour}, twoExports()...)
	half(long)
	began := time.Now()
	long.stop()
	long.wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// TestTLSClientThatNeverReads: TLS's close message does not wait for a client that receives
// nothing.
func TestTLSClientThatNeverReads(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	d := newLazy(data(8 * mib))
	r := startServer(t, &nbd.Server{TLS: a.serverConfig(t, false), WriteTimeout: 200 * time.Millisecond}, &nbd.Export{Device: d})
	conn := r.dialRaw(t)
	conn.Write(append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptStartTLS, nil)...))
	if _, err := io.ReadFull(conn, make([]byte, 18+20)); err != nil {
		t.Fatal(err)
	}
	secured := tls.Client(conn, a.clientConfig())
	secured.Write(nbdtest.OptionBytes(nbdtest.OptExportName, nil))
	for {
		if _, err := secured.Write(nbdtest.RequestBytes(1, nbdtest.Request{Length: 8 * mib})); err != nil {
			break // the server has closed the connection
		}
	}
	if err := conn.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
}

// TestTLSRefuses: versions before 1.2 and clients without a certificate of the right authority are
// refused.
func TestTLSRefuses(t *testing.T) {
	a, other := newAuthority(t, "ecdsa"), newAuthority(t, "ecdsa")
	r := startServer(t, &nbd.Server{TLS: a.serverConfig(t, true)}, twoExports()...)
	with := func(change func(*tls.Config)) *tls.Config {
		config := a.clientConfig()
		config.Certificates = []tls.Certificate{a.issueCert(t, x509.ExtKeyUsageClientAuth)}
		change(config)
		return config
	}
	for what, config := range map[string]*tls.Config{
		"TLS 1.1":           with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }),
		"no certificate":    with(func(c *tls.Config) { c.Certificates = nil }),
		"another authority": with(func(c *tls.Config) { c.Certificates[0] = other.issueCert(t, x509.ExtKeyUsageClientAuth) }),
		"a server's":        with(func(c *tls.Config) { c.Certificates[0] = a.issueCert(t, x509.ExtKeyUsageServerAuth) }),
	} {
		c := r.dialClient(t)
		err := c.StartTLS(config)
		if err == nil { // in TLS 1.3 a client learns of its refusal only when it reads
			_, err = c.List()
		}
		if err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := r.dialClient(t)
		if err := c.StartTLS(with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version })); err != nil {
			t.Fatal(err)
		}
		if _, err := c.List(); err != nil {
			t.Errorf("TLS %#x: %v", version, err)
		}
	}
}

// TestTLSClients connects with the GnuTLS clients, with keys of both kinds, over TCP and unix
// sockets.
func TestTLSClients(t *testing.T) {
	skipIfShort(t)
	for _, kind := range []string{"ecdsa", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			a, other := newAuthority(t, kind), newAuthority(t, kind)
			d, path := newImage(t)
			export := &nbd.Export{Name: "x", Device: d, MultiConn: true}
			open := startTCP(t, &nbd.Server{TLS: a.serverConfig(t, false)}, export)
			mutual := startTCP(t, &nbd.Server{TLS: a.serverConfig(t, true)}, export)
			for name, tc := range map[string]struct {
				r    *tcpRig
				dir  string
				want bool
			}{
				"no certificate wanted": {open, a.writeCertDir(t, nil), true},
				"certificate":           {mutual, a.writeCertDir(t, a), true},
				"none":                  {mutual, a.writeCertDir(t, nil), false},
				"another's certificate": {mutual, a.writeCertDir(t, other), false},
			} {
				t.Run(name, func(t *testing.T) {
					tlsOverTCP(t, tc.r, tc.dir, tc.want, path)
					tlsOverUnix(t, tc.r, tc.dir, tc.want, d)
				})
			}
			// Over a unix socket libnbd does not verify the server.
			t.Run("another's server", func(t *testing.T) { tlsOverTCP(t, mutual, other.writeCertDir(t, a), false, path) })
			out, status := runClient(t, "nbdinfo", "nbd://"+mutual.address+"/x")
			if status == 0 || !strings.Contains(out, "TLS") {
				t.Errorf("nbdinfo without TLS: status %d\n%s", status, out)
			}
		})
	}
}

func tlsOverTCP(t *testing.T, r *tcpRig, dir string, want bool, path string) {
	t.Helper()
	out, status := runClient(t, "nbdinfo", "nbds://"+r.address+"/x?tls-certificates="+dir)
	if (status == 0) != want || want && !strings.Contains(out, "with TLS") {
		t.Errorf("nbdinfo: status %d\n%s", status, out)
	}
	host, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	out, status = runClient(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+dir,
		"--image-opts", "driver=raw,file.filename="+path,
		"driver=nbd,export=x,tls-creds=t,server.type=inet,server.host="+host+",server.port="+port)
	if (status == 0) != want {
		t.Errorf("qemu-img compare: status %d\n%s", status, out)
	}
}

func tlsOverUnix(t *testing.T, r *tcpRig, dir string, want bool, d *lazy) {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	out, status := runClient(t, "nbdcopy", "nbds+unix:///x?socket="+r.socket+"&tls-certificates="+dir, copied)
	if (status == 0) != want {
		t.Errorf("nbdcopy: status %d\n%s", status, out)
	}
	if want {
		checkFile(t, copied, d.data)
	}
}

// tcpRig is a server on a unix socket and on TCP.
type tcpRig struct {
	*rig
	address string
}

func startTCP(t *testing.T, s *nbd.Server, exports ...*nbd.Export) *tcpRig {
	t.Helper()
	r := startServer(t, s, exports...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return &tcpRig{r, l.Addr().String()}
}
