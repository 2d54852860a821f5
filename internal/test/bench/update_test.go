package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/netlab"
)

// TestBlocksDownload: blocks of zeros, blocks that the old image has anywhere and repeats cost a hash only.
func TestBlocksDownload(t *testing.T) {
	noise := rand.NewChaCha8([32]byte{1})
	block := func() []byte {
		b := make([]byte, blockSize)
		noise.Read(b)
		return b
	}
	old, fresh, zeros := block(), block(), make([]byte, blockSize)
	dir := t.TempDir()
	write := func(name string, blocks ...[]byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Join(blocks, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	got, err := blocksDownload(write("a", fresh[:100], old[:blockSize-100], old), write("b", old, fresh, zeros, fresh, old[:10]))
	if err != nil {
		t.Fatal(err)
	}
	const hashes = 5 * 32
	if min := int64(hashes + blockSize + 10); got < min || got > min+200 {
		t.Errorf("%d bytes, want %d and a little", got, min)
	}
}

func TestUpdateMarkdown(t *testing.T) {
	r := netResults{Rounds: 1, update: true, Samples: []netSample{
		{Image: "ext4", Link: "slow", Tool: "cairn, delta", Wall: 10, CPU: 0.5, Counts: netlab.Counts{Requests: 100, Down: 5_100_000}},
		{Image: "ext4", Link: "slow", Tool: modelled, Wall: 30, Counts: netlab.Counts{Down: 9e6}},
	}}
	got := r.updateMarkdown()
	for _, want := range []string{
		"\n| ext4 | cairn, delta | 10.0 | 5.1 | 100 | 0.50 | 0 |\n",
		"\n| ext4 | " + modelled + " | 30.0 | 9.0 | – | – | – |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("markdown lacks %q:\n%s", want, got)
		}
	}
	if chart := updateChart("ext4", r.Samples); !strings.Contains(chart, ">3.00<") {
		t.Errorf("the chart does not say that the model takes three times as long:\n%s", chart)
	}
}
