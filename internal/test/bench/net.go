package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cairn/internal/test/netlab"
	"cairn/internal/test/nginx"
)

// netLink is a link over which release b is assembled onto an empty target.
type netLink struct {
	name string
	link netlab.Link
	fate func(connection int64) netlab.Fate
}

// netLinks returns the measured links.
func netLinks() []netLink {
	const ms = time.Millisecond
	lost := netlab.Every(7, netlab.Refused(), netlab.ResetAfter(100_000), netlab.BlackHole())
	return []netLink{
		{"40 ms, 100 Mbit/s", netlab.Link{RTT: 40 * ms, Rate: 100 * netlab.Mbit}, nil},
		{"5 ms, 1 Gbit/s", netlab.Link{RTT: 5 * ms, Rate: netlab.Gbit}, nil},
		{"100 ms, 5 Mbit/s, each 7th connection lost", netlab.Link{RTT: 100 * ms, Rate: 5 * netlab.Mbit}, lost},
	}
}

// netTool assembles the image of the index at a URL, with the store beside the index, onto the file b or a device.
type netTool struct {
	name   string
	device bool
	args   func(url, target string) []string
}

func netTools(cairn string) (tools []netTool) {
	assemble := func(url, target string) []string { return []string{cairn, "assemble", url + "/b.caibx", target} }
	tools = append(tools, netTool{name: "cairn", args: assemble})
	if os.Geteuid() == 0 {
		tools = append(tools, netTool{name: "cairn, onto a device", device: true, args: assemble})
	}
	return append(tools, netTool{name: "desync", args: desyncArgs()}, netTool{name: "desync -n 64", args: desyncArgs("-n", "64")})
}

func desyncArgs(options ...string) func(url, target string) []string {
	return func(url, target string) []string {
		args := append([]string{"desync", "extract"}, options...)
		return append(args, "-s", url+"/default.castr", url+"/b.caibx", target)
	}
}

// netSample is the result of one command over a link. Times are in seconds.
type netSample struct {
	Image   string  `json:"image"`
	Link    string  `json:"link"`
	Tool    string  `json:"tool"`
	Payload int64   `json:"payload"` // bytes of the index and of each chunk once
	Rate    int64   `json:"rate"`    // of the link, in bits a second
	Wall    float64 `json:"wall"`
	Share   float64 `json:"share"` // the least time for the payload over the wall time; 0 after a failure
	CPU     float64 `json:"cpu"`   // of the tool
	RigCPU  float64 `json:"rig_cpu"`
	Status  int     `json:"status"` // exit status; -1 if a signal ended it
	Error   string  `json:"error,omitempty"`
	Killed  bool    `json:"killed,omitempty"` // it exceeded the time limit
	netlab.Counts
}

// netResults are all measured samples.
type netResults struct {
	Machine machine     `json:"machine"`
	Rounds  int         `json:"rounds"`
	Samples []netSample `json:"samples"`
	update  bool        // the samples are of updates
}

// runNet measures over links with the images of each format, and writes the results.
func runNet(ctx context.Context, o options, formats []string) error {
	tools := [][]string{{o.cairn, "version"}, {"nginx", "-v"}}
	if o.update {
		tools = append(tools, []string{"casync", "--version"})
	}
	machine, err := describeMachine(ctx, tools...)
	if err != nil {
		return err
	}
	r := netResults{Machine: machine, Rounds: o.rounds, update: o.update}
	for _, format := range formats {
		if err := r.measure(ctx, o, format); err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
	}
	return r.writeFiles(o.out)
}

// measure runs all rounds with the image of one format.
func (r *netResults) measure(ctx context.Context, o options, format string) (err error) {
	work, err := os.MkdirTemp(o.work, "cairn-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	depot, err := newDepot(ctx, o, work, format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, depot.nginx.Stop()) }()
	links, tools := netLinks(), netTools(o.cairn)
	if o.update {
		links, tools = updateLinks(), updateTools(o.cairn)
	}
	for round := range o.rounds {
		for _, l := range links {
			if !strings.Contains(l.name, o.link) {
				continue
			}
			for _, tool := range tools {
				s := netSample{Image: format, Link: l.name, Tool: tool.name, Payload: depot.payload, Rate: l.link.Rate}
				if err := depot.measure(ctx, l, tool, &s); err != nil {
					return fmt.Errorf("%s with %s: %w", l.name, tool.name, err)
				}
				r.Samples = append(r.Samples, s)
				fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d, %s: %s took %.1f s\n", format, round+1, o.rounds, l.name,
					tool.name, s.Wall)
			}
			if o.update {
				r.Samples = append(r.Samples, depot.modelBlocks(format, l))
			}
		}
	}
	return nil
}

// depot is release b behind nginx. Tools run in work.
type depot struct {
	work, image string
	nginx       *nginx.Server
	payload     int64
	blocks      int64 // what an update by blocks downloads, if updates are measured
}

func newDepot(ctx context.Context, o options, work, format string) (*depot, error) {
	d := &depot{work: filepath.Join(work, "work"), image: filepath.Join(work, "image")}
	served := filepath.Join(work, "served")
	if err := errors.Join(os.Mkdir(d.work, 0o755), os.Mkdir(served, 0o755)); err != nil {
		return nil, err
	}
	if err := copyHead(ctx, filepath.Join(o.images, "b."+format), d.image, o.bytes); err != nil {
		return nil, err
	}
	err := runQuietly(exec.CommandContext(ctx, o.cairn, "make", filepath.Join(served, "b.caibx"), d.image))
	if err != nil {
		return nil, err
	}
	if d.payload, err = sizeOf(served); err != nil {
		return nil, err
	}
	if o.update {
		if err := d.prepareUpdate(ctx, o, served, format); err != nil {
			return nil, err
		}
	}
	d.nginx, err = nginx.Start(nginx.Options{Root: served, Work: work})
	return d, err
}

// copyHead copies an image. If bytes is not 0, it copies only that many.
func copyHead(ctx context.Context, from, to string, bytes int64) error {
	if err := runQuietly(exec.CommandContext(ctx, "cp", "--sparse=always", from, to)); err != nil || bytes == 0 {
		return err
	}
	return os.Truncate(to, bytes)
}

// sizeOf returns the bytes of all files below a directory.
func sizeOf(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		n += info.Size()
		return err
	})
	return n, err
}

// measure assembles b once over a link, and fills in s. A tool that fails, or takes ten times as long as the
// link needs, is a result; a tool that succeeds with a wrong image is an error.
func (d *depot) measure(ctx context.Context, l netLink, tool netTool, s *netSample) (err error) {
	proxy, err := netlab.NewProxy(d.nginx.Address(), l.link, l.fate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	ideal := float64(d.payload) * 8 / float64(l.link.Rate)
	limited, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(10*ideal)*time.Second)
	defer cancel()
	rig, err := d.rigCPU()
	if err != nil {
		return err
	}
	target, release, err := d.makeTarget(tool.device)
	if err != nil {
		return err
	}
	d.runTool(limited, tool.args("http://"+proxy.Addr(), target), s)
	if err := cmp.Or(release(), ctx.Err()); err != nil {
		return err
	}
	after, err := d.rigCPU()
	if err != nil {
		return err
	}
	s.RigCPU, s.Counts, s.Killed = after-rig, proxy.Counts(), limited.Err() != nil
	return d.compareImage(ideal, s)
}

// makeTarget returns b, or a loop device on it that exists until release is called.
func (d *depot) makeTarget(device bool) (path string, release func() error, err error) {
	if !device {
		return "b", func() error { return nil }, nil
	}
	info, err := os.Stat(d.image)
	if err != nil {
		return "", nil, err
	}
	b := filepath.Join(d.work, "b")
	if err := errors.Join(os.WriteFile(b, nil, 0o644), os.Truncate(b, info.Size())); err != nil {
		return "", nil, err
	}
	node, err := exec.Command("losetup", "--find", "--show", b).Output()
	if err != nil {
		return "", nil, fmt.Errorf("losetup %s: %w", b, err)
	}
	path = strings.TrimSpace(string(node))
	return path, func() error { return runQuietly(exec.Command("losetup", "--detach", path)) }, nil
}

// runTool runs a tool, and adds its time and status to s.
func (d *depot) runTool(ctx context.Context, args []string, s *netSample) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = d.work
	var words bytes.Buffer
	cmd.Stderr = &words
	begun := time.Now()
	err := cmd.Run()
	s.Wall = time.Since(begun).Seconds()
	s.Status = -1
	if cmd.ProcessState != nil {
		s.Status = cmd.ProcessState.ExitCode()
		s.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	}
	if err != nil {
		s.Error = fmt.Sprintf("%v: %s", err, lastLine(words.String()))
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// compareImage compares the assembled image with b, and removes it.
func (d *depot) compareImage(ideal float64, s *netSample) error {
	b := filepath.Join(d.work, "b")
	if s.Status != 0 {
		return os.RemoveAll(b)
	}
	s.Share = ideal / s.Wall
	return errors.Join(runQuietly(exec.Command("cmp", b, d.image)), os.Remove(b))
}

// rigCPU returns the CPU time of the server and the link so far, in seconds.
func (d *depot) rigCPU() (float64, error) {
	server, err := nginxCPU(d.nginx)
	if err != nil {
		return 0, err
	}
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return 0, err
	}
	return server + time.Duration(own.Utime.Nano()+own.Stime.Nano()).Seconds(), nil
}

// writeFiles writes the results as JSON, with every sample, as tables, and as charts of updates.
func (r *netResults) writeFiles(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{path + ".json": string(text) + "\n", path + ".md": r.markdown()}
	if r.update {
		files[path+".md"] = r.updateMarkdown()
		for image, samples := range groupBy(r.Samples, func(s netSample) string { return s.Image }) {
			files[path+"-"+image+".svg"] = updateChart(image, samples)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// markdown returns the results as a table for each kind of image.
func (r *netResults) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d CPUs, Linux %s; medians of %d rounds.\n", r.Machine.Date, r.Machine.CPU, r.Machine.CPUs,
		r.Machine.Kernel, r.Rounds)
	fmt.Fprintf(&b, "%s.\n", strings.Join(r.Machine.Tools, " · "))
	for image, samples := range groupBy(r.Samples, func(s netSample) string { return s.Image }) {
		fmt.Fprintf(&b, "\n### %s, %.1f MB\n\n", image, float64(samples[0].Payload)/1e6)
		b.WriteString("| link | tool | wall, s | of the link | requests | connections | lost | MB down | MB up | CPU, s | rig's CPU, s | exit |\n")
		b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|\n")
		for link, samples := range groupBy(samples, func(s netSample) string { return s.Link }) {
			for tool, samples := range groupBy(samples, func(s netSample) string { return s.Tool }) {
				writeNet(&b, link, tool, samples)
			}
		}
	}
	return b.String()
}

// netCost is the median of each figure of a tool's samples over a link. exits lists all different exit statuses.
type netCost struct {
	wall, share, cpu, rigCPU, requests, connections, lost, down, up float64
	exits                                                           string
}

func netCostOf(samples []netSample) netCost {
	of := func(figure func(netSample) float64) float64 {
		var values []float64
		for _, s := range samples {
			values = append(values, figure(s))
		}
		return median(values)
	}
	var exits []string
	for exit := range groupBy(samples, exitOf) {
		exits = append(exits, exit)
	}
	return netCost{
		wall:        of(func(s netSample) float64 { return s.Wall }),
		share:       of(func(s netSample) float64 { return s.Share }),
		cpu:         of(func(s netSample) float64 { return s.CPU }),
		rigCPU:      of(func(s netSample) float64 { return s.RigCPU }),
		requests:    of(func(s netSample) float64 { return float64(s.Requests) }),
		connections: of(func(s netSample) float64 { return float64(s.Connections) }),
		lost:        of(func(s netSample) float64 { return float64(s.Lost) }),
		down:        of(func(s netSample) float64 { return float64(s.Down) }),
		up:          of(func(s netSample) float64 { return float64(s.Up) }),
		exits:       strings.Join(exits, ", "),
	}
}

// writeNet writes a row.
func writeNet(b *strings.Builder, link, tool string, samples []netSample) {
	c := netCostOf(samples)
	fmt.Fprintf(b, "| %s | %s | %.1f | %.1f %% | %.0f | %.0f | %.0f | %.1f | %.2f | %.2f | %.2f | %s |\n", link, tool,
		c.wall, 100*c.share, c.requests, c.connections, c.lost, c.down/1e6, c.up/1e6, c.cpu, c.rigCPU, c.exits)
}

// exitOf returns the end of a command: its status, or "too slow".
func exitOf(s netSample) string {
	if s.Killed {
		return "too slow"
	}
	return fmt.Sprint(s.Status)
}
