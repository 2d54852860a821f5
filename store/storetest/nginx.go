package storetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/need"
)

// Nginx serves a directory with a real nginx on 127.0.0.1 until the test ends, and returns its URL. The
// directives are added to those of its only server; they name its root when dir is "".
func Nginx(t testing.TB, dir string, directives ...string) string {
	t.Helper()
	return "http://" + startNginx(t, dir, "", directives)
}

// NginxTLS is Nginx with a certificate of the authority for 127.0.0.1, localhost and store.test, which a proxy may know;
// without an authority the directives name one.
func NginxTLS(t testing.TB, dir string, a *Authority, directives ...string) string {
	t.Helper()
	if a != nil {
		cert, key := a.Server(t, "127.0.0.1", "localhost", "store.test")
		directives = append(directives, fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s;", cert, key))
	}
	return "https://" + startNginx(t, dir, "ssl", directives)
}

// WebDAV are the directives that let clients write.
const WebDAV = "dav_methods PUT; create_full_put_path on; client_max_body_size 64m;"

func startNginx(t testing.TB, dir, listenOptions string, directives []string) string {
	t.Helper()
	path := need.Tool(t, "nginx")
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	work := t.TempDir()
	config := filepath.Join(work, "nginx.conf")
	listen := listener.Addr().String() + " " + listenOptions
	if dir != "" {
		directives = append(directives, "root "+dir+";")
	}
	if err := os.WriteFile(config, nginxConfig(work, listen, directives), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(work, "error.log")
	cmd := exec.Command(path, "-p", work, "-c", config, "-e", log)
	// nginx takes over a socket that listens already: no port is lost to others.
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Env = append(os.Environ(), "NGINX=3;")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Unlike SIGKILL, SIGTERM ends the worker too. The status depends on how far nginx had come.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("nginx: %s", text)
		}
	})
	_ = errors.Join(listener.Close(), socket.Close()) // nginx's own is the last one now
	if err := greet(listener.Addr().String()); err != nil {
		t.Fatalf("nginx does not start: %v", err)
	}
	return listener.Addr().String()
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

// nginxConfig has every path below work. The worker stays who the test is, to read its private directories;
// without a master process nginx 1.22 crashes on inherited sockets.
func nginxConfig(work, listen string, directives []string) []byte {
	return fmt.Appendf(nil, `
daemon off;
worker_processes 1;
user root;
pid %[1]s/nginx.pid;
events { worker_connections 512; }
http {
	access_log off;
	log_not_found off;
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
`, work, listen, strings.Join(directives, "\n"))
}
