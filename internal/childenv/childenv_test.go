package childenv_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"cairn/internal/childenv"
)

// TestEnviron: a child gets no credentials of cairn, and everything else.
func TestEnviron(t *testing.T) {
	for _, name := range []string{"CAIRN_BEARER_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY",
		"AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"} {
		t.Setenv(name, "hush")
	}
	t.Setenv("HTTPS_PROXY", "http://user:hush@proxy.example.com:3128")
	t.Setenv("https_proxy", "user:hush@proxy.example.com:3128")
	t.Setenv("ALL_PROXY", "socks5://proxy.example.com")
	t.Setenv("SLOT", "b")
	t.Setenv("AWS_PROFILE", "device")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/etc/keys")
	cmd := exec.CommandContext(t.Context(), "env")
	cmd.Env = childenv.Environ()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "hush") {
		t.Errorf("the child has a credential:\n%s", out)
	}
	got := strings.Split(string(out), "\n")
	for _, want := range []string{"SLOT=b", "AWS_PROFILE=device", "AWS_SHARED_CREDENTIALS_FILE=/etc/keys",
		"HTTPS_PROXY=http://proxy.example.com:3128", "https_proxy=proxy.example.com:3128", "ALL_PROXY=socks5://proxy.example.com"} {
		if !slices.Contains(got, want) {
			t.Errorf("the child lacks %s:\n%s", want, out)
		}
	}
	if !slices.ContainsFunc(got, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		t.Errorf("the child lacks PATH:\n%s", out)
	}
}
