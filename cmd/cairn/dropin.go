package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/internal/dropin"
	"cairn/internal/openfile"
)

// debugVariable is the environment variable that makes casync and desync print how they were translated.
const debugVariable = "CAIRN_DEBUG"

// newDropin returns the command that stands for another tool in the help. run handles it before the commands are parsed.
func newDropin(tool string) *cobra.Command {
	return &cobra.Command{
		Use:   tool + " COMMAND...",
		Short: "Do what a command line of " + tool + " asks for",
		Long: fmt.Sprintf(`cairn %s does what a command line of %s asks for. A link with the name %s to cairn does the same:

  ln -s cairn /usr/local/bin/%s

'cairn %s --help' lists the commands and flags, and what becomes of them. %s=1 in the environment prints
the flags that are ignored, and the command line of cairn. Every failure has the exit status 1.`, tool, tool, tool, tool, tool, debugVariable),
		DisableFlagParsing: true,
	}
}

// runDropin runs cairn for the arguments of another tool, and returns the exit status. It is 0 or 1, as the tool's.
func runDropin(tool string, args []string) int {
	call, err := dropin.Translate(tool, args, versionText())
	if err != nil {
		return failDropin(tool, err)
	}
	if call.Text != "" {
		if _, err := os.Stdout.WriteString(call.Text); err != nil {
			return failDropin(tool, err)
		}
		return exitDone
	}
	if call.Verbose || os.Getenv(debugVariable) == "1" {
		for _, note := range call.Notes {
			logf("debug: %s", note)
		}
		if len(call.Args) > 0 {
			logf("debug: cairn %s", showArgs(call.Args))
		}
	}
	for name, value := range call.Env {
		if err := os.Setenv(name, value); err != nil {
			return failDropin(tool, err)
		}
	}
	if err := replaceStdout(call); err != nil {
		return failDropin(tool, err)
	}
	fields, err := pipeHeaders(call.Headers)
	if err != nil {
		return failDropin(tool, err)
	}
	defer fields.close()
	args = append(call.Args, fields.flags...)
	if call.Digest != nil {
		switch err := printDigest(*call.Digest, args); {
		case errors.Is(err, errRun):
			return exitFailed
		case err != nil:
			return failDropin(tool, err)
		}
		return exitDone
	}
	if status := run(args); status != exitDone && (status != exitMended || !call.Mended) {
		return exitFailed
	}
	return exitDone
}

// secretURL matches a URL with a user or a query, which may be secrets, and the text behind it.
var secretURL = regexp.MustCompile(`(?s)([A-Za-z][A-Za-z0-9+.-]*://)[^@?]*[@?].*`)

// failDropin prints an error without the secrets of URLs, and returns the exit status.
func failDropin(tool string, err error) int {
	printError(stderr, fmt.Errorf("%s: %s", tool, secretURL.ReplaceAllString(err.Error(), "${1}…")), "")
	return exitFailed
}

// replaceStdout makes a file or stderr the stdout of the process, if the call says so.
func replaceStdout(call dropin.Call) error {
	if call.Stderr {
		return unix.Dup3(int(os.Stderr.Fd()), openfile.Stdout, 0)
	}
	if call.Output == "" {
		return nil
	}
	f, err := os.OpenFile(call.Output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Dup3(int(f.Fd()), openfile.Stdout, 0)
}

// headerPipes holds header fields in pipes, so that no secret is on a command line.
type headerPipes struct {
	flags []string
	files []*os.File
}

// pipeHeaders writes header fields into pipes. The flags name the pipes.
func pipeHeaders(fields []dropin.Header) (p headerPipes, err error) {
	for _, h := range fields {
		r, w, err := os.Pipe()
		if err != nil {
			return p, err
		}
		go func() { // a field may be larger than the buffer of a pipe
			fmt.Fprintln(w, h.Field) // fails if the command ends without reading it
			w.Close()
		}()
		p.files = append(p.files, r)
		p.flags = append(p.flags, fmt.Sprintf("--header-file=%s=/dev/fd/%d", h.Host, r.Fd()))
	}
	return p, nil
}

func (p headerPipes) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// errRun reports that cairn failed, and has printed why.
var errRun = errors.New("cairn failed")

// printDigest runs cairn with the arguments, if there are any, and prints the digest of an image.
func printDigest(d dropin.Digest, args []string) error {
	var sum hash.Hash
	switch d.Algorithm {
	case "sha256":
		sum = sha256.New()
	case "", "default", "sha512-256":
		sum = sha512.New512_256()
	default:
		return fmt.Errorf("--digest=%s: want sha512-256 or sha256", d.Algorithm)
	}
	stdout, err := copyStdout() // a command may close its own
	if err != nil {
		return err
	}
	defer stdout.Close()
	switch {
	case d.Path == "":
		if err := hashStdout(sum, args); err != nil {
			return err
		}
	case len(args) > 0 && run(args) != exitDone:
		return errRun
	default:
		if err := hashFile(sum, d.Path, d.Size); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdout, "%x\n", sum.Sum(nil))
	return err
}

func copyStdout() (*os.File, error) {
	fd, err := unix.FcntlInt(openfile.Stdout, unix.F_DUPFD_CLOEXEC, 3)
	return os.NewFile(uintptr(fd), "stdout"), err
}

// hashFile hashes the first size bytes of a file, or the whole file for 0.
func hashFile(sum hash.Hash, name string, size int64) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if size > 0 {
		r = io.LimitReader(f, size)
	}
	_, err = io.CopyBuffer(sum, r, make([]byte, 1<<20))
	return err
}

// hashStdout runs cairn and hashes its stdout.
func hashStdout(sum hash.Hash, args []string) error {
	r, w, err := os.Pipe()
	if err == nil {
		err = unix.Dup3(int(w.Fd()), openfile.Stdout, 0)
	}
	if err != nil {
		return err
	}
	w.Close()
	hashed := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(sum, r, make([]byte, 1<<20))
		hashed <- err
	}()
	status := run(args)
	os.Stdout.Close() // the end of the pipe
	if err := <-hashed; err != nil {
		return err
	}
	if status != exitDone {
		return errRun
	}
	return nil
}

// showArgs returns arguments as a shell takes them, without the secrets of URLs.
func showArgs(args []string) string {
	shown := make([]string, len(args))
	for i, arg := range args {
		arg = hideURLs(arg)
		if strings.ContainsAny(arg, " \t\n'\"\\|&;()<>*?[]{}$`#~!") || arg == "" {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		shown[i] = arg
	}
	return strings.Join(shown, " ")
}
