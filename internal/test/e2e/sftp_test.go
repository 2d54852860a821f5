package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/sftp"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestSFTP: cairn and desync read stores that cairn wrote on an sshd, and cairn reads desync's.
func TestSFTP(t *testing.T) {
	if testing.Short() {
		t.Skip("desync takes long to connect")
	}
	need.Tool(t, "desync")
	sshd := storetest.NewSSHD(t, "internal-sftp")
	ssh := writeFile(t, t.TempDir(), "ssh", []byte("#!/bin/sh\nexec ssh -F "+sshd.Config+" \"$@\"\n"))
	if err := os.Chmod(ssh, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CAIRN_SSH", ssh)
	t.Setenv("CASYNC_SSH_PATH", ssh) // for desync
	image := writeFile(t, t.TempDir(), "image", append(testimages.Random(1, 900_000), make([]byte, 1<<20)...))
	local := makeWith(t, "cairn", digest512, usualSizes, image)

	dir := t.TempDir()
	ours := made{"sftp://store" + dir + "/x.caibx", "sftp://store" + dir + "/ours.castr"}
	upload(t, ours.store, local.store)
	upload(t, "sftp://store"+dir, filepath.Dir(local.index))
	wantSame(t, extractWith(t, "cairn", digest512, ours), image)
	cairn(t, "verify", "-s", ours.store, ours.index)
	out := filepath.Join(dir, "out of desync")
	must(t, "desync", "--digest", digest512, "extract", "-n", "2", "-s", ours.store, local.index, out) // connections
	wantSame(t, out, image)

	theirs := made{local.index, "sftp://store" + mkdir(t, filepath.Join(dir, "theirs.castr"))}
	must(t, "desync", "--digest", digest512, "chop", "-n", "2", "-s", theirs.store, local.index, image)
	wantSame(t, extractWith(t, "cairn", digest512, theirs), image)
	cairn(t, "assemble", ours.index, filepath.Join(dir, "out"), "-s", "sftp://store"+dir+"/absent|"+ours.store)
}

// upload writes the files below dir into a bucket.
func upload(t *testing.T, location, dir string) {
	t.Helper()
	at, err := sftp.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	b, err := sftp.New(at, sftp.Options{MakeRoot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, ".cairn-") {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return b.Write(t.Context(), name, readFile(t, path))
	})
	if err != nil {
		t.Fatal(err)
	}
}
