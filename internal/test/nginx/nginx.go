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

// Options configure a server.
type Options struct {
	Root       string   // the directory that it serves; "" for none
	Work       string   // a directory for its own files
	TLS        bool     // listen with TLS; Directives name the certificate
	Log        bool     // write a line for each request to AccessLog
	Directives []string // of its server block
}

const accessLog = "access.log"

// Server is a running nginx.
type Server struct {
	work, address string
	cmd           *exec.Cmd
}

// Start starts a server on a free port of 127.0.0.1, and returns when it answers requests.
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
	if err := os.WriteFile(config, o.makeConfig(s.address), 0o600); err != nil {
		return nil, err
	}
	s.cmd = exec.Command("nginx", "-p", o.Work, "-c", config, "-e", s.errorLog())
	// nginx takes over a listening socket, so that no other program gets the port.
	s.cmd.ExtraFiles = []*os.File{socket}
	s.cmd.Env = append(os.Environ(), "NGINX=3;")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	_ = errors.Join(listener.Close(), socket.Close()) // nginx now has the only descriptor
	if err := awaitAnswer(s.address); err != nil {
		return nil, errors.Join(fmt.Errorf("nginx does not start: %w: %s", err, s.Errors()), s.Stop())
	}
	return s, nil
}

// awaitAnswer returns when nginx answers a request, whatever the answer: the socket accepts connections earlier. A
// signal during the start of nginx would be lost, and nginx would run forever.
func awaitAnswer(address string) error {
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

// Address returns the server's HOST:PORT.
func (s *Server) Address() string { return s.address }

// Pid returns the number of the main process. A child process does the work.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// AccessLog returns the path of a file with a line "METHOD STATUS BODY-BYTES PATH" for each request, if
// Options.Log is set.
func (s *Server) AccessLog() string { return filepath.Join(s.work, accessLog) }

func (s *Server) errorLog() string { return filepath.Join(s.work, "error.log") }

// Errors returns the text of the error log.
func (s *Server) Errors() string {
	text, _ := os.ReadFile(s.errorLog())
	return string(text)
}

// Stop terminates the server. Unlike SIGKILL, SIGTERM also ends the worker process.
func (s *Server) Stop() error {
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // the status depends on the moment of the signal
	return err
}

// makeConfig returns a configuration with all paths below the work directory. The worker keeps the user of this
// program, to read its private directories. The master process runs because without it nginx 1.22 crashes on
// inherited sockets.
func (o Options) makeConfig(address string) []byte {
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
