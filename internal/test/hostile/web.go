package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// server is a hostile web server. It speaks HTTP by hand, since net/http would refuse to send most of its answers.
type server struct {
	dir   string
	share float64 // of honest answers
	seed  uint64
	*tally

	calm    context.Context // ends when the server becomes honest, or ends
	answers []webAnswer
	conns   atomic.Uint64
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context) error {
	var becomeHonest context.CancelFunc
	s.calm, becomeHonest = context.WithCancel(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() { <-signals; becomeHonest() }()
	defer becomeHonest()
	s.answers = webAnswers()

	certificate, file, err := selfSigned()
	if err != nil {
		return err
	}
	defer os.Remove(file)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s https://%s %s\n", plain.Addr(), secure.Addr(), file)
	context.AfterFunc(ctx, func() { plain.Close(); secure.Close() })
	var group sync.WaitGroup
	group.Go(func() { s.accept(ctx, &group, plain, nil) })
	group.Go(func() { s.accept(ctx, &group, secure, &tls.Config{Certificates: []tls.Certificate{certificate}}) })
	group.Wait()
	return nil
}

// selfSigned returns a certificate for 127.0.0.1, and a file that contains it.
func selfSigned() (c tls.Certificate, file string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return c, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(cryptorand.Reader, template, template, key.Public(), key)
	if err != nil {
		return c, "", err
	}
	f, err := os.CreateTemp("", "hostile-*.pem")
	if err != nil {
		return c, "", err
	}
	defer f.Close()
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, f.Name(),
		pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (s *server) accept(ctx context.Context, group *sync.WaitGroup, l net.Listener, config *tls.Config) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.add(1, 0, 0)
		chance := rand.New(rand.NewPCG(s.seed, s.conns.Add(1)))
		group.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			s.serveConn(conn, config, chance)
		})
	}
}

// honest reports whether the next answer is honest.
func (s *server) honest(chance *rand.Rand) bool {
	return s.calm.Err() != nil || chance.Float64() < s.share
}

// serveConn serves a connection, or spoils it from its beginning.
func (s *server) serveConn(conn net.Conn, config *tls.Config, chance *rand.Rand) {
	if !s.honest(chance) && chance.IntN(8) == 0 {
		switch chance.IntN(20) {
		case 0:
			s.addKind("connection: silence")
			<-s.calm.Done()
		case 1, 2, 3, 4, 5, 6, 7, 8, 9:
			s.addKind("connection: garbage")
			_, _ = conn.Write(bytes.Repeat([]byte{0x16, 3, 1, 255, 255}, 1+chance.IntN(100_000)))
		default:
			s.addKind("connection: closed")
		}
		return
	}
	if config != nil {
		conn = tls.Server(conn, config)
	}
	in := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		s.add(0, 1, 0)
		e := &exchange{Rand: chance, server: s, conn: conn, path: r.URL.Path, head: r.Method == http.MethodHead}
		e.body, err = os.ReadFile(filepath.Join(s.dir, path.Clean("/"+r.URL.Path)))
		e.found = err == nil
		if s.honest(chance) {
			e.answerHonestly()
			continue
		}
		a := s.answers[chance.IntN(len(s.answers))]
		if strings.HasPrefix(a.name, "slow") && chance.IntN(8) > 0 { // these would take most of the time
			a = s.answers[chance.IntN(len(s.answers))]
		}
		s.addKind(a.name)
		if a.do(e); !a.goesOn {
			return
		}
	}
}

// exchange is a request that is being answered.
type exchange struct {
	*rand.Rand
	*server
	conn  net.Conn
	path  string
	head  bool
	body  []byte // of the honest answer
	found bool
}

// send reports whether the client may still listen.
func (e *exchange) send(data []byte) bool {
	_ = e.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	n, err := e.conn.Write(data)
	e.add(0, 0, int64(n))
	return err == nil
}

func (e *exchange) sendf(format string, args ...any) { e.send(fmt.Appendf(nil, format, args...)) }

func (e *exchange) answerHonestly() {
	if !e.found {
		e.sendf("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		return
	}
	e.answer("", e.body)
}

// answer sends 200 with more header fields and a body.
func (e *exchange) answer(fields string, body []byte) {
	e.sendf("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n%sContent-Length: %d\r\n\r\n", fields, len(body))
	if !e.head {
		e.send(body)
	}
}

// whole returns the honest answer.
func (e *exchange) whole() []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(e.body), e.body)
}

// drip sends bytes one by one.
func (e *exchange) drip(data []byte) {
	interval := time.Duration(1+e.IntN(100)) * time.Millisecond
	for i := range data {
		if !e.send(data[i : i+1]) {
			return
		}
		if e.calm.Err() != nil {
			e.send(data[i+1:])
			return
		}
		pause(e.calm, interval)
	}
}

// flood sends a text again and again, until the client closes the connection or limit bytes are sent.
func (e *exchange) flood(text string, limit int) {
	data := bytes.Repeat([]byte(text), 1+64<<10/len(text))
	for sent := 0; sent < limit && e.calm.Err() == nil && e.send(data); sent += len(data) {
	}
}

// choose returns one of the texts.
func (e *exchange) choose(texts ...string) string { return texts[e.IntN(len(texts))] }
