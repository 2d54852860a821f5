package archtest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"cairn/internal/test/need"

	"github.com/google/licensecheck"
)

// builds are the environments in which cairn is built. Each may link other modules.
var builds = []string{
	"GOARCH=amd64 CGO_ENABLED=0", "GOARCH=arm64 CGO_ENABLED=0", "GOARCH=arm CGO_ENABLED=0",
	"GOARCH=amd64 CGO_ENABLED=1 GOFLAGS=-tags=libzstd",
}

// fitting are the licences whose code a program under the Apache License 2.0 may contain.
var fitting = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

// TestLicences: docs/licences.md lists the modules that cmd/cairn links, with the licences found in their files, and
// each licence is a fitting one.
func TestLicences(t *testing.T) {
	walk(t, func(string, []byte) {}) // a change of any source runs this test again
	var got []string
	linked, scanner := linkedFiles(t), newScanner(t)
	for _, module := range slices.Sorted(maps.Keys(linked)) {
		var texts [][]byte
		for file := range linked[module] {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts = append(texts, text)
		}
		licences, err := classify(scanner, texts)
		if err != nil {
			t.Errorf("%s: %v", module, err)
		}
		got = append(got, fmt.Sprintf("| %s | %s |", module, strings.Join(licences, ", ")))
	}
	listed, err := os.ReadFile("../../../docs/licences.md")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^\| [a-z0-9.]+/.*$`).FindAllString(string(listed), -1)
	if !slices.Equal(got, want) {
		t.Errorf("docs/licences.md does not list what is linked, which is:\n%s", strings.Join(got, "\n"))
	}
}

// linkedFiles maps each module that cmd/cairn links to its licence files: those in the directories of the linked
// packages, and above them up to the module's root.
func linkedFiles(t *testing.T) map[string]map[string]bool {
	files := map[string]map[string]bool{}
	for _, build := range builds {
		list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}\t{{.Dir}}{{end}}\t{{.Dir}}", "./cmd/cairn")
		list.Dir = "../../.."
		list.Env = append(os.Environ(), strings.Fields(build)...)
		out, err := list.Output()
		if err != nil {
			t.Fatalf("%s %v: %v", build, list, err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Split(strings.TrimSpace(line), "\t")
			if len(fields) == 3 && fields[0] != module { // not of the standard library, not ours
				if files[fields[0]] == nil {
					files[fields[0]] = map[string]bool{}
				}
				addLicenceFiles(t, files[fields[0]], fields[1], fields[2])
			}
		}
	}
	return files
}

var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)`)

// addLicenceFiles adds the licence files in dir and in the directories above it up to root.
func addLicenceFiles(t *testing.T, files map[string]bool, root, dir string) {
	for ; ; dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if licenceFile.MatchString(e.Name()) && e.Type().IsRegular() && path.Ext(e.Name()) != ".go" {
				files[filepath.Join(dir, e.Name())] = true
			}
		}
		if len(dir) <= len(root) {
			return
		}
	}
}

// newScanner returns a scanner that knows the fitting licences only.
func newScanner(t *testing.T) *licensecheck.Scanner {
	known := slices.DeleteFunc(licensecheck.BuiltinLicenses(), func(l licensecheck.License) bool {
		return !slices.Contains(fitting, l.ID)
	})
	scanner, err := licensecheck.NewScanner(known)
	if err != nil {
		t.Fatal(err)
	}
	return scanner
}

// chosen maps the first line of a licence file that offers several licences to the one that we take.
var chosen = map[string]string{"/* SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only */": "BSD-3-Clause"}

// classify returns the SPDX names of the licences in texts. It is an error if there is no text, or if more than a
// tenth of one, such as its copyright lines, does not belong to a licence that the scanner knows.
func classify(scanner *licensecheck.Scanner, texts [][]byte) (names []string, err error) {
	if len(texts) == 0 {
		return nil, errors.New("has no licence file")
	}
	for _, text := range texts {
		first, _, _ := strings.Cut(string(text), "\n")
		if name, is := chosen[first]; is {
			names = append(names, name)
			continue
		}
		found := scanner.Scan(text)
		if found.Percent < 90 {
			return nil, fmt.Errorf("has another licence than %s; it begins %.60q", strings.Join(fitting, ", "), text)
		}
		for _, m := range found.Match {
			names = append(names, m.ID)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// TestClassify checks licences that do not fit, and similar ones that do.
func TestClassify(t *testing.T) {
	const gpl = "This program is free software; you can redistribute it and/or modify it under the terms of the GNU " +
		"General Public License as published by the Free Software Foundation; either version 2 of the License, or " +
		"(at your option) any later version."
	apache, err := os.ReadFile("../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	scanner, own := newScanner(t), []byte("You may use this software in the company of friends.")
	for _, c := range []struct {
		name      string
		texts     [][]byte
		want, err string // the names; a part of the error
	}{
		{"ours", [][]byte{apache}, "[Apache-2.0]", ""},
		{"none", nil, "[]", "no licence file"},
		{"copyleft", [][]byte{[]byte(gpl)}, "[]", "another licence"},
		{"copyleft for a part", [][]byte{apache, []byte(gpl)}, "[]", "another licence"},
		{"unknown", [][]byte{own}, "[]", "another licence"},
		{"unknown for a part", [][]byte{apache, own}, "[]", "another licence"},
	} {
		got, err := classify(scanner, c.texts)
		if fmt.Sprint(got) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: classify = %v, %v, want %s, %q", c.name, got, err, c.want, c.err)
		}
	}
}

// TestVulnerabilities runs .ci/vuln on a program, with databases that list one of its functions, a function that it
// does not call, and with one that cannot be reached.
func TestVulnerabilities(t *testing.T) {
	need.Tool(t, "govulncheck")
	script, err := filepath.Abs("../../../.ci/vuln")
	if err != nil {
		t.Fatal(err)
	}
	program := t.TempDir()
	writeFile(t, program, "go.mod", "module m\n\ngo 1.26\n")
	writeFile(t, program, "main.go", "package main\n\nimport \"unicode/utf8\"\n\nfunc main() { println(utf8.RuneLen(0)) }\n")
	for _, c := range []struct {
		name, database string
		fails          bool
		want           string // a part of the output
	}{
		{"called", database(t, "RuneLen"), true, "GO-2099-0001"},
		{"not called", database(t, "ValidRune"), false, ""},
		{"unreachable", "https://vuln.go.dev", false, "vuln: https://vuln.go.dev cannot be reached; known vulnerabilities were NOT checked\n"},
	} {
		var stderr bytes.Buffer
		run := exec.CommandContext(t.Context(), script, c.database)
		run.Dir, run.Stderr = program, &stderr
		run.Env = append(os.Environ(), "HTTPS_PROXY=http://127.0.0.1:1") // no server listens on port 1
		stdout, err := run.Output()
		if (err != nil) != c.fails || !strings.Contains(string(stdout)+stderr.String(), c.want) {
			t.Errorf("%s: .ci/vuln: %v, want failed = %t and %q in the output:\n%s%s", c.name, err, c.fails, c.want, stdout, &stderr)
		}
	}
}

// database returns the URL of a database with one vulnerability: function, of the package unicode/utf8.
func database(t *testing.T, function string) string {
	dir := t.TempDir()
	writeFile(t, dir, "GO-2099-0001.json", `{"schema_version": "1.3.1", "id": "GO-2099-0001", "modified": "2026-01-01T00:00:00Z",
		"database_specific": {"url": "https://example.com"}, "affected": [{"package": {"name": "stdlib", "ecosystem": "Go"},
		"ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}],
		"ecosystem_specific": {"imports": [{"path": "unicode/utf8", "symbols": ["`+function+`"]}]}}]}`)
	return "file://" + dir
}

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
