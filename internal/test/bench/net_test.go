package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/internal/test/netlab"
	"cairn/internal/test/nginx"
)

func TestNetMarkdown(t *testing.T) {
	r := netResults{Machine: machine{Date: "2026-01-02", CPU: "Abacus", CPUs: 2, Kernel: "6.1", Tools: []string{"cairn 1"}}, Rounds: 3}
	for i, wall := range []float64{10, 12, 11} {
		r.Samples = append(r.Samples,
			netSample{Image: "ext4", Link: "slow", Tool: "cairn", Payload: 5e6, Wall: wall, Share: 9 / wall, CPU: 0.5, RigCPU: 0.25,
				Counts: netlab.Counts{Requests: 100, Connections: 8, Lost: 1, Down: 5_100_000, Up: 20_000}},
			netSample{Image: "ext4", Link: "slow", Tool: "other", Payload: 5e6, Wall: 60, Status: -i, Killed: i == 2})
	}
	got := r.markdown()
	for _, want := range []string{
		"2026-01-02, Abacus, 2 CPUs, Linux 6.1; medians of 3 rounds.\ncairn 1.\n",
		"\n### ext4, 5.0 MB\n",
		"\n| slow | cairn | 11.0 | 81.8 % | 100 | 8 | 1 | 5.1 | 0.02 | 0.50 | 0.25 | 0 |\n",
		"\n| slow | other | 60.0 | 0.0 % | 0 | 0 | 0 | 0.0 | 0.00 | 0.00 | 0.00 | 0, -1, too slow |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("markdown lacks %q:\n%s", want, got)
		}
	}
}

// TestNetMeasure measures commands that succeed, fail, and assemble a wrong image, through the real server.
func TestNetMeasure(t *testing.T) {
	need.Tool(t, "nginx")
	copies, sh := need.Tool(t, "cp"), need.Tool(t, "sh")
	work := t.TempDir()
	served := filepath.Join(work, "served")
	image := filepath.Join(work, "image")
	for _, dir := range []string{served, filepath.Join(work, "work")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(image, []byte("an image"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := nginx.Start(nginx.Options{Root: served, Work: work})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	d := &depot{work: filepath.Join(work, "work"), image: image, nginx: server, payload: 1000}
	l := netLinks()[0]
	var s netSample
	right := netTool{name: "right", args: func(_, _ string) []string { return []string{copies, image, "b"} }}
	if err := d.measure(t.Context(), l, right, &s); err != nil || s.Status != 0 || s.Share <= 0 || s.Error != "" {
		t.Errorf("a tool that is right: %v, %+v", err, s)
	}
	s = netSample{}
	fails := netTool{name: "fails", args: func(_, _ string) []string { return []string{sh, "-c", "echo why >&2; exit 3"} }}
	if err := d.measure(t.Context(), l, fails, &s); err != nil || s.Status != 3 || s.Share != 0 || !strings.HasSuffix(s.Error, ": why") {
		t.Errorf("a tool that fails: %v, %+v", err, s)
	}
	wrong := netTool{name: "wrong", args: func(_, _ string) []string { return []string{sh, "-c", "echo wrong > b"} }}
	if err := d.measure(t.Context(), l, wrong, new(netSample)); err == nil {
		t.Error("a wrong image is taken for a result")
	}
}
