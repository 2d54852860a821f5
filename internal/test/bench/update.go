package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"cairn/internal/test/netlab"
)

// updateLinks returns the links over which an update from a to b is measured.
func updateLinks() []netLink {
	return []netLink{{"50 ms, 20 Mbit/s", netlab.Link{RTT: 50 * time.Millisecond, Rate: 20 * netlab.Mbit}, nil}}
}

// updateTools returns the tools that assemble b with the image a of the slot in use as a seed. desync is given the index
// of a, which it needs; casync and cairn scan a.
func updateTools(cairn string) []netTool {
	ours := func(options ...string) func(url, target string) []string {
		return func(url, target string) []string {
			return append([]string{cairn, "assemble", url + "/b.caibx", target, "--seed", "../a"}, options...)
		}
	}
	return []netTool{
		{name: "cairn, delta", args: ours()},
		{name: "cairn, chunks", args: ours("--no-delta")},
		{name: "desync", args: desyncArgs("--seed", "../a.caibx:../a")},
		{name: "casync", args: func(url, target string) []string {
			return []string{"casync", "extract", "--store=" + url + "/default.castr", "--seed=../a", url + "/b.caibx", target}
		}},
	}
}

// modelled is the tool whose figures are computed: an update that downloads the 4 KiB blocks that a lacks.
const modelled = "4 KiB blocks, model"

// prepareUpdate makes a's image and index, and a delta from a to b in the served directory.
func (d *depot) prepareUpdate(ctx context.Context, o options, served, format string) error {
	a := filepath.Join(filepath.Dir(d.work), "a")
	if err := copyHead(ctx, filepath.Join(o.images, "a."+format), a, o.bytes); err != nil {
		return err
	}
	index, store := a+".caibx", filepath.Join(served, "default.castr")
	for _, args := range [][]string{
		{"make", index, a, "-s", store},
		{"delta", index, filepath.Join(served, "b.caibx"), "-s", store, "--old-image", a, "--new-image", d.image},
	} {
		if err := runQuietly(exec.CommandContext(ctx, o.cairn, args...)); err != nil {
			return err
		}
	}
	var err error
	d.blocks, err = blocksDownload(a, d.image)
	return err
}

// modelBlocks returns the least that an update by 4 KiB blocks takes, as RAUC's adaptive updates do it: the link's time
// for its bytes, and two round trips.
func (d *depot) modelBlocks(format string, l netLink) netSample {
	wall := float64(d.blocks)*8/float64(l.link.Rate) + 2*l.link.RTT.Seconds()
	s := netSample{Image: format, Link: l.name, Tool: modelled, Payload: d.payload, Rate: l.link.Rate, Wall: wall}
	s.Down = d.blocks
	return s
}

// blocksDownload returns the bytes that an update by blocks downloads: 32 bytes of hash for each block of b, and the
// different blocks that a lacks, which are not zeros, as one stream of zstd -3.
func blocksDownload(a, b string) (int64, error) {
	known := map[[sha256.Size]byte]bool{sha256.Sum256(make([]byte, blockSize)): true}
	if err := eachBlock(a, func(block []byte) error {
		known[sha256.Sum256(block)] = true
		return nil
	}); err != nil {
		return 0, err
	}
	var stored countingWriter
	encoder, err := zstd.NewWriter(&stored, zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return 0, err
	}
	var hashes int64
	err = eachBlock(b, func(block []byte) error {
		hash := sha256.Sum256(block)
		hashes += int64(len(hash))
		if known[hash] {
			return nil
		}
		known[hash] = true
		_, err := encoder.Write(block)
		return err
	})
	if err := cmp.Or(err, encoder.Close()); err != nil {
		return 0, err
	}
	return hashes + int64(stored), nil
}

const blockSize = 4096

// eachBlock calls f with each block of a file. The last one is filled up with zeros.
func eachBlock(path string, f func(block []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	r, block := bufio.NewReaderSize(file, 1<<20), make([]byte, blockSize)
	for {
		n, err := io.ReadFull(r, block)
		if n == 0 && err == io.EOF {
			return nil
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		clear(block[n:])
		if err := f(block); err != nil {
			return err
		}
	}
}

// countingWriter counts the bytes that are written to it.
type countingWriter int64

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

// updateMarkdown returns the table of updates of each kind of image.
func (r *netResults) updateMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d CPUs, Linux %s; medians of %d rounds.\n", r.Machine.Date, r.Machine.CPU, r.Machine.CPUs,
		r.Machine.Kernel, r.Rounds)
	fmt.Fprintf(&b, "%s.\n\n", strings.Join(r.Machine.Tools, " · "))
	b.WriteString("| image | tool | wall, s | MB down | requests | CPU, s | exit |\n|---|---|---|---|---|---|---|\n")
	for image, samples := range groupBy(r.Samples, func(s netSample) string { return s.Image }) {
		for tool, samples := range groupBy(samples, func(s netSample) string { return s.Tool }) {
			c := netCostOf(samples)
			if tool == modelled {
				fmt.Fprintf(&b, "| %s | %s | %.1f | %.1f | – | – | – |\n", image, tool, c.wall, c.down/1e6)
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %.1f | %.1f | %.0f | %.2f | %s |\n", image, tool, c.wall, c.down/1e6, c.requests, c.cpu,
				c.exits)
		}
	}
	return b.String()
}

// updateChart draws the wall time of each tool for the update of one kind of image, as multiples of the first tool's.
func updateChart(image string, samples []netSample) string {
	bars := []bar{{label: samples[0].Link}}
	var ours float64
	for tool, samples := range groupBy(samples, func(s netSample) string { return s.Tool }) {
		wall := netCostOf(samples).wall
		if ours == 0 {
			ours = max(wall, tick)
		}
		bars = append(bars, bar{tool, wall / ours, strings.HasPrefix(tool, "cairn")})
	}
	return drawChart(image+": wall time of an update, cairn's with a delta is 1", bars)
}
