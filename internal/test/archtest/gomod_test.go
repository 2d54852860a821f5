package archtest

import (
	"bytes"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"testing"
)

// TestGoVersion: every go.mod requires the same patch release of Go, which the README names. A go.mod that requires
// the first release of a series, such as 1.26.0, admits toolchains whose standard library has known vulnerabilities.
func TestGoVersion(t *testing.T) {
	versions := map[string][]string{} // version → the files that require it
	line := regexp.MustCompile(`(?m)^go (\S+)$`)
	walk(t, func(name string, text []byte) {
		if path.Base(name) == "go.mod" {
			version := "none"
			if m := line.FindSubmatch(text); m != nil {
				version = string(m[1])
			}
			versions[version] = append(versions[version], name)
		}
	})
	if len(versions) != 1 {
		t.Fatalf("the go.mod files require different versions of Go: %v", versions)
	}
	version := slices.Collect(maps.Keys(versions))[0]
	if !regexp.MustCompile(`^\d+\.\d+\.[1-9]\d*$`).MatchString(version) {
		t.Errorf("the go.mod files require Go %s, want a patch release such as 1.26.8", version)
	}
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := "Go " + version + " or newer"; !bytes.Contains(readme, []byte(want)) {
		t.Errorf("README.md does not say %q", want)
	}
}
