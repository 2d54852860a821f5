package starter

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) {
	if IsStarter() {
		if Main() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// shell returns a command that runs a script.
func shell(script string) Command { return Command{"sh", []string{"-c", script}} }

// runThrough runs a command with the text as its input, and returns its output and outcome.
func runThrough(t *testing.T, s *Starter, c Command, input string) (output string, err error) {
	t.Helper()
	in, stdin, err1 := os.Pipe()
	stdout, out, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	p, err := s.Start(c, in, out, os.Stderr)
	in.Close()
	out.Close()
	if err == nil {
		_, err = io.WriteString(stdin, input)
	}
	stdin.Close()
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), p.Wait()
}

// TestStart: a program gets its files and environment, and its outcome is reported, with a starter and without one.
func TestStart(t *testing.T) {
	commands := []Command{shell(`cat; echo "$CAIRN_TEST_STARTER $CAIRN_BEARER_TOKEN" `), shell("exit 3"), shell("kill -TERM $$"), {"cairn-no-such-program", nil}}
	t.Setenv("CAIRN_TEST_STARTER", "set")
	t.Setenv("CAIRN_BEARER_TOKEN", "secret")
	s, err := New(commands, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, s := range []*Starter{s, nil} {
		got, err := runThrough(t, s, commands[0], "input\n")
		if want := "input\nset \n"; got != want || err != nil {
			t.Errorf("a program printed %q, %v, want %q", got, err, want)
		}
		for i, want := range map[int]string{1: "exit status 3", 2: "signal: terminated"} {
			if _, err := runThrough(t, s, commands[i], ""); err == nil || err.Error() != want {
				t.Errorf("%v: %v, want %s", commands[i], err, want)
			}
		}
		if _, err := runThrough(t, s, commands[3], ""); !errors.Is(err, exec.ErrNotFound) {
			t.Errorf("an absent program: %v, want %v", err, exec.ErrNotFound)
		}
	}
}

// TestOnlyKnown: a starter refuses commands that it was not given.
func TestOnlyKnown(t *testing.T) {
	s, err := New([]Command{shell("true")}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := runThrough(t, s, shell("echo intruder"), ""); !errors.Is(err, os.ErrPermission) {
		t.Errorf("an unknown command: %v, want %v", err, os.ErrPermission)
	}
	if err := writeMessage(s.conn, request{1}, os.Stdin, os.Stdin, os.Stderr, os.Stderr); err != nil {
		t.Fatal(err)
	}
	if err := s.process.Wait(); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a starter after an invalid request: %v, want exit status 1", err)
	}
}

// TestSignal: a signal reaches the program's process group.
func TestSignal(t *testing.T) {
	// The inner shell is a process of the group that the signal ends. It has no trap when it says ready.
	c := shell(`trap 'echo caught; exit 0' TERM; sh -c 'echo ready; exec sleep 1000' & wait`)
	s, err := New([]Command{c}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, s := range []*Starter{s, nil} {
		stdout, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Start(c, os.Stdin, out, os.Stderr)
		out.Close()
		if err != nil {
			t.Fatal(err)
		}
		ready := make([]byte, len("ready\n"))
		if _, err := io.ReadFull(stdout, ready); err != nil {
			t.Fatal(err)
		}
		p.Signal(syscall.SIGTERM)
		rest, err := io.ReadAll(stdout)
		if string(rest) != "caught\n" || err != nil {
			t.Errorf("after a signal the program printed %q, %v", rest, err)
		}
		if err := p.Wait(); err != nil {
			t.Errorf("after a signal: %v", err)
		}
		p.Signal(syscall.SIGTERM) // has no effect
		stdout.Close()
	}
}
