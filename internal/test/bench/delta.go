package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/store"
)

// jobDelta is the job that makes a delta from a to b. Its result is what a client with a downloads for b.
const jobDelta = "delta from a to b"

// deltaJobs returns the job that makes a delta, with the tools that make one for a whole image beside it.
func (s suite) deltaJobs() []job {
	patch := func(tool, text string) command {
		args := append(words(text), "patch")
		return command{tool: tool, dir: "patches", args: args, prepare: removePatch, download: patchSize}
	}
	// Each build encodes chunks in its own way. Both stores have a and b.
	var ours []command
	for _, v := range s.builds() {
		args := words("delta a.caibx b.caibx -s store --old-image ../a --new-image ../b")
		c := command{args: args, download: deltaDownload}.runBy(v)
		c.prepare = func(dir string) error { return makeBoth(dir, v.binary) }
		ours = append(ours, c)
	}
	return []job{{name: jobDelta, commands: append(ours,
		patch("zstd -3", "zstd -q -f -3 --long=31 --single-thread --patch-from=../a ../b -o"),
		patch("zstd -19", "zstd -q -f -19 --long=31 --single-thread --patch-from=../a ../b -o"),
		patch("xdelta3 -9", "xdelta3 -f -e -9 -B 2147483648 -W 16777216 -s ../a ../b"))}}
}

func makeBoth(dir, cairn string) error {
	for _, args := range []string{"make -s store a.caibx ../a", "make -s store b.caibx ../b"} {
		cmd := exec.Command(cairn, words(args)...)
		cmd.Dir = dir
		if err := runQuietly(cmd); err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(dir, "store.cadelta"))
}

func removePatch(dir string) error { return os.RemoveAll(filepath.Join(dir, "patch")) }

func patchSize(dir string) (int64, error) {
	info, err := os.Stat(filepath.Join(dir, "patch"))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// deltaDownload returns the bytes that a client with a downloads for b: the index, the list of deltas, head and table
// of the delta, its payloads, and the chunks that it does not have.
func deltaDownload(dir string) (int64, error) {
	a, err := readIndex(filepath.Join(dir, "a.caibx"))
	if err != nil {
		return 0, err
	}
	b, err := readIndex(filepath.Join(dir, "b.caibx"))
	if err != nil {
		return 0, err
	}
	deltas := filepath.Join(dir, "store.cadelta", b.Digest().String())
	list, err := os.Stat(filepath.Join(deltas, "list"))
	if err != nil {
		return 0, err
	}
	f, err := os.Open(filepath.Join(deltas, a.Digest().String()+delta.Suffix))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	d, err := delta.Decode(f, b)
	if err != nil {
		return 0, err
	}
	encoded := map[int]bool{}
	for _, r := range d.All() {
		encoded[r.Chunk] = true
	}
	total := b.EncodedSize() + list.Size() + d.FileSize()
	old, first := blob.NewTable(a), blob.NewTable(b)
	for i, c := range b.All() {
		j := old.Find(c.Digest)
		if known := j >= 0 && a.At(j).Digest == c.Digest; known || encoded[i] || b.IsZero(i) || first.Find(c.Digest) != i {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, "store", store.ObjectName(c.Digest, true)))
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}

func readIndex(path string) (*blob.Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return blob.Decode(f)
}

// writeDownloads writes a table of what each tool's delta makes a client download.
func writeDownloads(b *strings.Builder, samples []sample) {
	b.WriteString("| tool | download, MB | to the best zstd | to xdelta3 | CPU, s | wall, s | peak, MiB |\n")
	b.WriteString("|---|---|---|---|---|---|---|\n")
	downloads, best := map[string]int64{}, int64(0)
	for _, s := range samples {
		downloads[s.Tool] = s.Download
		if strings.HasPrefix(s.Tool, "zstd") && (best == 0 || s.Download < best) {
			best = s.Download
		}
	}
	for tool, samples := range groupBy(samples, func(s sample) string { return s.Tool }) {
		c, n := costOf(samples), float64(downloads[tool])
		fmt.Fprintf(b, "| %s | %.2f | %.3f | %.3f | %.1f | %.1f | %.0f |\n", tool, n/1e6,
			n/float64(best), n/float64(downloads["xdelta3 -9"]), c.cpu, c.wall, c.rss)
	}
}
