package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob/delta/deltadir"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestDeltaS3, TestDeltaSFTP and TestDeltaWebDAV publish deltas on a real server, remove older ones if it can, and
// verify and copy them.
func TestDeltaS3(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	publishDeltas(t, func(name string) string { return server.Location("images/v/"+name, "?lookup=path") }, true,
		"AWS_ACCESS_KEY_ID="+server.AccessKey, "AWS_SECRET_ACCESS_KEY="+server.SecretKey)
}

func TestDeltaSFTP(t *testing.T) {
	server := storetest.NewSSHD(t, "internal-sftp")
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	programs, root := t.TempDir(), t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s -F %s \"$@\"\n", ssh, server.Config)
	if err := os.WriteFile(filepath.Join(programs, "ssh"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	publishDeltas(t, func(name string) string { return "sftp://store" + root + "/" + name }, true,
		"PATH="+programs+":"+os.Getenv("PATH"))
}

func TestDeltaWebDAV(t *testing.T) {
	url := storetest.Nginx(t, t.TempDir(), storetest.WebDAV)
	publishDeltas(t, func(name string) string { return url + "/" + name }, false)
}

func publishDeltas(t *testing.T, at func(name string) string, removes bool, environment ...string) {
	t.Helper()
	image := testimages.Random(1, 500_000)
	var files []string
	for i := range 3 {
		image[100_000*(i+1)] ^= 1
		files = append(files, filepath.Join(t.TempDir(), "image"))
		if err := os.WriteFile(files[i], image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cairn := func(args ...string) []byte {
		t.Helper()
		c := exec.CommandContext(t.Context(), "cairn", args...)
		var messages strings.Builder
		c.Env, c.Stderr = append(os.Environ(), environment...), &messages
		out, err := c.Output()
		if err != nil {
			t.Fatalf("cairn %q: %v\n%s", args, err, messages.String())
		}
		return out
	}
	cairn("make", at("v1.caibx"), files[0])
	cairn("make", at("v2.caibx"), files[1], "--delta-from", at("v1.caibx"))
	cairn("make", at("v3.caibx"), files[2])
	args := []string{"delta", at("v2.caibx"), at("v3.caibx"), "--json"}
	want := 0
	if removes {
		args, want = append(args, "--keep-last", "1"), 4
	}
	var made deltasResult
	if err := json.Unmarshal(cairn(args...), &made); err != nil {
		t.Fatal(err)
	}
	if r := made.Deltas[0]; r.Outcome != deltadir.Made || r.Chunks != 1 || made.Removed != want || strings.Contains(r.Delta, "?") {
		t.Errorf("delta = %+v", made)
	}
	if err := json.Unmarshal(cairn(args...), &made); err != nil || made.Deltas[0].Outcome != deltadir.Held {
		t.Errorf("delta again = %+v, %v", made, err)
	}
	var verified struct{ Deltas deltadir.VerifyReport }
	if err := json.Unmarshal(cairn("store", "verify", at("default.castr"), at("v3.caibx"), "--state", "", "--json"), &verified); err != nil {
		t.Fatal(err)
	}
	if d := verified.Deltas; d.Deltas != 1 || d.Bytes == 0 || d.Unchecked > 0 {
		t.Errorf("verify = %+v", verified)
	}
	var copied struct{ Deltas deltadir.CopyReport }
	copyTo := filepath.Join(t.TempDir(), "default.castr")
	if err := json.Unmarshal(cairn("store", "copy", at("default.castr"), copyTo, at("v3.caibx"), "--json"), &copied); err != nil {
		t.Fatal(err)
	}
	if copied.Deltas.Copied.Deltas != 1 {
		t.Errorf("copy = %+v", copied)
	}
}
