package sftp_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/sftp"
)

// Where a test checks the packets, the test binary itself replaces ssh. It starts OpenSSH's
// sftp-server, logs the requests, and hides the extensions of version 3 that relayOnly does not
// name.
const (
	relayLog  = "CAIRN_TEST_SFTP_LOG"
	relayOnly = "CAIRN_TEST_SFTP_ONLY" // the extensions that are not hidden
)

const sftpServer = "/usr/lib/openssh/sftp-server"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(relayLog) != "":
		if err := relay(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(aloneLocation) != "":
		alone()
	default:
		os.Exit(m.Run())
	}
}

// throughRelay replaces ssh by this program. The log is complete when the bucket is closed.
func throughRelay(t *testing.T, only string) (o sftp.Options, log string) {
	t.Helper()
	if _, err := os.Stat(sftpServer); err != nil {
		need.Missing(t, sftpServer+" is not installed")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log = t.TempDir() + "/log"
	t.Setenv(relayLog, log)
	t.Setenv(relayOnly, only)
	return sftp.Options{Program: program, Connections: 1}, log
}

func relay() error {
	log, err := os.OpenFile(os.Getenv(relayLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(sftpServer)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	answered := make(chan error, 1)
	go func() { answered <- relayAnswers(out) }()
	for {
		p, err := nextPacket(os.Stdin)
		if err != nil {
			break
		}
		fmt.Fprintln(log, describe(p))
		if _, err := in.Write(p); err != nil {
			break
		}
	}
	in.Close()
	err = <-answered
	_ = cmd.Wait()
	return err
}

// relayAnswers passes the server's packets on.
func relayAnswers(out io.Reader) error {
	p, err := nextPacket(out)
	if err != nil {
		return err
	}
	if _, err := os.Stdout.Write(filtered(p)); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, out)
	return err
}

// filtered returns a version packet without the hidden extensions.
func filtered(p []byte) []byte {
	kept, rest := append([]byte(nil), p[:9]...), p[9:]
	next := func() []byte {
		n := 4 + binary.BigEndian.Uint32(rest)
		field := rest[:n]
		rest = rest[n:]
		return field
	}
	for len(rest) > 0 {
		name, value := next(), next()
		if strings.Contains(os.Getenv(relayOnly), string(name[4:])) {
			kept = append(append(kept, name...), value...)
		}
	}
	binary.BigEndian.PutUint32(kept, uint32(len(kept)-4))
	return kept
}

func nextPacket(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	p := append(head, make([]byte, binary.BigEndian.Uint32(head))...)
	_, err := io.ReadFull(r, p[4:])
	return p, err
}

// describe returns the name of a request.
func describe(p []byte) string {
	names := map[byte]string{
		1: "init", 3: "open", 4: "close", 5: "read", 6: "write", 7: "lstat", 8: "fstat", 9: "setstat", 11: "opendir", 12: "readdir",
		13: "remove", 14: "mkdir", 17: "stat", 18: "rename",
	}
	if kind := p[4]; kind != 200 {
		return names[kind]
	}
	n := binary.BigEndian.Uint32(p[9:])
	name, _, _ := strings.Cut(string(p[13:13+n]), "@")
	return name
}
