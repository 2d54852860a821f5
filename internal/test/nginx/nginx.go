// Package nginx runs a real nginx on this machine, for tests and benchmarks.
package nginx

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Options of a server.
type Options struct {
	Root       string   // what is served; "" is nothing
	Work       string   // a directory for its own files
	TLS        bool     // the directives name the certificate
	Log        bool     // each request is noted in AccessLog
	Directives []string // of its server block
}

const accessLog = "access.log"

// Server is an nginx that runs.
type Server struct {
	work, address string
	cmd           *exec.Cmd
}

// Start starts a server on a free port of 127.0.0.1, and returns when it answers.
func Start(o Options) (*Server, error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	s := &Server{work: o.Work, address: listener.Addr().String()}
	config := filepath.Join(o.Work, "nginx.conf")
	if err := os.WriteFile(config, o.config(s.address), 0o600); err != nil {
		return nil, err
	}
	s.cmd = exec.Command("nginx", "-p", o.Work, "-c", config, "-e", s.errorLog())
	// nginx takes over a socket that listens already: no port is lost to others.
	s.cmd.ExtraFiles = []*os.File{socket}
	s.cmd.Env = append(os.Environ(), "NGINX=3;")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	_ = errors.Join(listener.Close(), socket.Close()) // nginx's own is the last one now
	if err := greet(s.address); err != nil {
		return nil, errors.Join(fmt.Errorf("nginx does not start: %w: %s", err, s.Errors()), s.Stop())
	}
	return s, nil
}

// greet returns when nginx answers, whatever that is; the socket takes connections before. A signal that comes
// while it starts would be forgotten, and nginx run for ever.
func greet(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// Address is where it listens, as HOST:PORT.
func (s *Server) Address() string { return s.address }

// Pid is its process. The work is done by a child.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// AccessLog is the path of a file with a line "METHOD STATUS BODY-BYTES PATH" for each request, if Options.Log asks for
// it.
func (s *Server) AccessLog() string { return filepath.Join(s.work, accessLog) }

func (s *Server) errorLog() string { return filepath.Join(s.work, "error.log") }

// Errors is what it complained about.
func (s *Server) Errors() string {
	text, _ := os.ReadFile(s.errorLog())
	return string(text)
}

// Stop ends it. Unlike SIGKILL, SIGTERM ends the worker too.
func (s *Server) Stop() error {
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // the status depends on how far it had come
	return err
}

// config has every path below the work directory. The worker stays who this program is, to read its private
// directories; without a master process nginx 1.22 crashes on inherited sockets.
func (o Options) config(address string) []byte {
	directives := o.Directives
	if o.Root != "" {
		directives = append([]string{"root " + o.Root + ";"}, directives...)
	}
	if o.TLS {
		address += " ssl"
	}
	log := "off"
	if o.Log {
		log = filepath.Join(o.Work, accessLog) + " sizes"
	}
	return fmt.Appendf(nil, `
daemon off;
worker_processes 1;
user root;
pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
	log_format sizes "$request_method $status $body_bytes_sent $uri";
	access_log %[4]s;
	log_not_found off;
	sendfile on;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s;
		%[3]s
	}
}
`, o.Work, address, strings.Join(directives, "\n\t\t"), log)
}
