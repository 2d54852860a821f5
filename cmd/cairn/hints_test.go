package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"cairn/internal/disk"
	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/web"
)

// TestHints checks the hint of each cause, and the exit status according to the README.
func TestHints(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		hint   string
	}{
		{web.ErrUnauthorized, exitNotFound, "--bearer-token-file"},
		{store.ErrDenied, exitNotFound, "what these credentials may do"},
		{web.ErrNoCertificate, exitNotFound, "--client-cert"},
		{transfer.DeniedByProxy("407"), exitNotFound, "HTTPS_PROXY"},
		{&store.UnavailableError{Err: transfer.DeniedByProxy("407")}, exitNotFound, "HTTPS_PROXY"},
		{s3.ErrDenied, exitNotFound, "AWS_ACCESS_KEY_ID"},
		{s3.ErrClock, exitNotFound, "clock"},
		{s3.ErrNoBucket, exitNotFound, "the bucket's name"},
		{sftp.ErrLogin, exitNotFound, "BatchMode"},
		{sftp.ErrDenied, exitNotFound, "the path on the server"},
		{sftp.ErrHostKey, exitNotFound, "compare the key"},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, exitNotFound, "as root"},
		{fmt.Errorf("%w: %w", store.ErrDenied, syscall.EACCES), exitNotFound, "as root"},
		{x509.UnknownAuthorityError{}, exitNotFound, "--ca-cert"},
		{x509.HostnameError{Certificate: new(x509.Certificate)}, exitNotFound, "a name that the server's certificate has"},
		{x509.CertificateInvalidError{Reason: x509.Expired}, exitNotFound, "clock"},
		{x509.CertificateInvalidError{Reason: x509.IncompatibleUsage}, exitNotFound, "issued anew"},
		{web.ErrScheme, exitNotFound, "https://"},
		{web.ErrNoAbsence, exitFailed, "404"},
		{web.ErrForm, exitFailed, "--compression none"},
		{store.ErrUnavailable, exitNotFound, "check the network"},
		{disk.ErrMBR, exitNotFound, "/dev/sda2"},
		{disk.ErrNoTable, exitNotFound, "has a GPT"},
		{disk.ErrNotFound, exitNotFound, "cairn disk"},
		{absentHint(store.ErrNotFound, "here"), exitNotFound, "here"},
		{absentHint(s3.ErrDenied, "here"), exitNotFound, "AWS_ACCESS_KEY_ID"},
		{errors.New("else"), exitFailed, ""},
	} {
		err := fmt.Errorf("doing: %w", test.err)
		status := exitStatus(t.Context(), err)
		if hint := hintFor(newRoot(), err, status); status != test.status || !strings.Contains(hint, test.hint) || test.hint == "" && hint != "" {
			t.Errorf("%v: status %d, hint %q; want %d, %q", test.err, status, hint, test.status, test.hint)
		}
	}
}

// TestS3Hints: the hint about a refusal of S3 is about its keys, and not about tokens for web servers.
func TestS3Hints(t *testing.T) {
	for code, want := range map[string]string{
		"AccessDenied": "hint: check the keys", "SignatureDoesNotMatch": "hint: check the keys", "RequestTimeTooSkewed": "hint: set this machine's clock",
		"NoSuchBucket": "hint: check the bucket's name",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "<Error><Code>%s</Code></Error>", code)
		}))
		t.Cleanup(server.Close)
		c := exec.CommandContext(t.Context(), "cairn", "info", "s3+"+server.URL+"/bucket/x.caibx")
		c.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b")
		out, _ := c.CombinedOutput() // the status is checked below
		if c.ProcessState.ExitCode() != exitNotFound || !strings.Contains(string(out), want) || strings.Contains(string(out), "bearer") {
			t.Errorf("%s: status %d, %s; want %q", code, c.ProcessState.ExitCode(), out, want)
		}
	}
}
