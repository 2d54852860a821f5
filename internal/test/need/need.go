// Package need says what a test cannot run without. On a laptop a missing tool skips the test; in CI
// (CAIRN_CI=1 or CI=true) it fails it, since there the project's own files install everything.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// CI says whether a missing tool is a failure.
func CI() bool { return os.Getenv("CAIRN_CI") == "1" || os.Getenv("CI") == "true" }

// Missing ends the test: it cannot run here, because of why.
func Missing(t testing.TB, why string) {
	t.Helper()
	if CI() {
		t.Fatalf("%s, and in CI nothing may be missing (.ci/install brings it)", why)
	}
	t.Skip(why)
}

// Tool is the path of a program that the test runs.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name+" is not installed")
	}
	return path
}

// Root lets only a privileged test go on: loop devices, mounts, namespaces.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "this test needs root")
	}
}
