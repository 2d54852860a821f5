package starter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsStarter reports whether this process is a starter, and must call Main.
func IsStarter() bool { return len(os.Args) == 1 && os.Args[0] == marker }

// Main runs a starter until the process that started it ends.
func Main() error {
	const socket = 3 // the first of ExtraFiles
	// A service manager sends its signals to all processes of a service. Handlers, unlike SIG_IGN, are not inherited.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	f := os.NewFile(socket, "starter")
	conn, err := packetConn(f)
	if err == nil {
		_ = f.Close()
		err = serve(conn)
	}
	if err != nil {
		return fmt.Errorf("the starter of programs: %w", err)
	}
	return nil
}

// serve starts commands of the list that is the first message.
func serve(conn *net.UnixConn) error {
	var commands []Command
	if _, err := readMessage(conn, &commands); err != nil {
		return err
	}
	for {
		var r request
		files, err := readMessage(conn, &r)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case len(files) != requestFiles || r.Command < 0 || r.Command >= len(commands):
			closeAll(files)
			return errors.New("an invalid request")
		}
		go runCommand(commands[r.Command], files)
	}
}

// runCommand runs a command, and writes to the last of the files whether it started, and then its outcome. It passes the
// signals that it reads from there on.
func runCommand(c Command, files []*os.File) {
	control := files[requestFiles-1]
	defer control.Close()
	p, err := startChild(c, files[0], files[1], files[2])
	closeAll(files[:requestFiles-1])
	writeAnswer(control, err)
	if err != nil {
		return
	}
	go func() {
		number := make([]byte, 1)
		for {
			if n, err := control.Read(number); n == 0 || err != nil {
				return
			}
			p.Signal(syscall.Signal(number[0]))
		}
	}()
	writeAnswer(control, p.Wait())
}

// writeAnswer writes an answer. The process that waits for it may have ended.
func writeAnswer(to *os.File, err error) {
	var a answer
	if err != nil {
		a.Failed = err.Error()
	}
	if text, err := json.Marshal(a); err == nil {
		_, _ = to.Write(text)
	}
}

// readMessage reads a message, and returns the files that come with it.
func readMessage(conn *net.UnixConn, into any) (files []*os.File, err error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(requestFiles*4))
	n, rightsLen, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsLen])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for i, fd := range fds {
			if err := unix.SetNonblock(fd, i == requestFiles-1); err != nil { // Close ends reads of the control socket
				return files, err
			}
			files = append(files, os.NewFile(uintptr(fd), "file"))
		}
	}
	return files, json.Unmarshal(text[:n], into)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
