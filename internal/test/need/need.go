// Package need checks for the programs and privileges that a test needs. If one is missing, the test is skipped on a
// developer's machine, and fails in CI (CAIRN_CI=1 or CI=true), where the project's own scripts install everything.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// CI reports whether a missing tool is a failure.
func CI() bool { return os.Getenv("CAIRN_CI") == "1" || os.Getenv("CI") == "true" }

// Missing skips or fails a test that cannot run, for the reason why.
func Missing(t testing.TB, why string) {
	t.Helper()
	if CI() {
		t.Fatalf("%s, and in CI nothing may be missing (.ci/install brings it)", why)
	}
	t.Skip(why)
}

// Tool returns the path of a program that the test runs.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name+" is not installed")
	}
	return path
}

// Root ends a test that runs without root privileges, which loop devices, mounts and namespaces need.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "this test needs root")
	}
}
