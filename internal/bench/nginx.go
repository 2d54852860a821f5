package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// nginx is a web server over a directory.
type nginx struct {
	address string
	cmd     *exec.Cmd
}

// startNginx serves a directory on 127.0.0.1, with its own files in work.
func startNginx(work, dir string) (*nginx, error) {
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
	n := &nginx{address: listener.Addr().String()}
	config := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(config, nginxConfig(work, dir, n.address), 0o644); err != nil {
		return nil, err
	}
	n.cmd = exec.Command("nginx", "-p", work, "-c", config, "-e", filepath.Join(work, "error.log"))
	// nginx takes over a socket that listens already: no port is lost to others, and none has to be waited for.
	n.cmd.ExtraFiles = []*os.File{socket}
	n.cmd.Env = append(os.Environ(), "NGINX=3;")
	return n, n.cmd.Start()
}

func (n *nginx) stop() error {
	err := n.cmd.Process.Signal(syscall.SIGTERM)
	_ = n.cmd.Wait() // the status depends on how far it had come
	return err
}

// cpu is the CPU time that nginx has used so far, in seconds. Its work is done by children.
func (n *nginx) cpu() (sum float64, err error) {
	pid := n.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return 0, err
		}
		user, sys, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		sum += user + sys
	}
	return sum, nil
}

// nginxConfig has every path below work. The worker stays who this program is, to read its private directories;
// without a master process nginx 1.22 crashes on inherited sockets.
func nginxConfig(work, dir, address string) []byte {
	return fmt.Appendf(nil, `
daemon off;
worker_processes 1;
user root;
pid %[1]s/nginx.pid;
events { worker_connections 1024; }
http {
	access_log off;
	sendfile on;
	default_type application/octet-stream;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server { listen %[3]s; root %[2]s; }
}
`, work, dir, address)
}
