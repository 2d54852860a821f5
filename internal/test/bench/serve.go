package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// server describes the measurement of a server.
type server struct {
	socket string // the socket that it listens on
	warm   bool   // copy the export twice before the measurement
	load   load
}

// load is work for the server at a URI. It stores its amount in the sample.
type load func(ctx context.Context, uri string, s *sample) error

// run starts a server, runs the load, and adds the server's cost to the sample.
func (v server) run(ctx context.Context, cmd *exec.Cmd, s *sample) (err error) {
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		// Not every server exits with 0 after a signal; only its earlier work counts.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		err = errors.Join(err, removeSocket(v.socket))
	}()
	if err := awaitSocket(ctx, v.socket); err != nil {
		return err
	}
	uri := "nbd+unix:///?socket=" + v.socket
	if v.warm {
		if err := errors.Join(copyOut(ctx, uri, new(sample)), copyOut(ctx, uri, new(sample))); err != nil {
			return err
		}
	}
	user, sys, err := cpuTime(cmd.Process.Pid)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := v.load(ctx, uri, s); err != nil {
		return err
	}
	s.Wall = time.Since(begun).Seconds()
	s.User, s.Sys, err = cpuTime(cmd.Process.Pid)
	s.User, s.Sys = s.User-user, s.Sys-sys
	if s.Ops > 0 {
		s.scaleOps()
	}
	return err
}

func removeSocket(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// copyOut reads the whole export in large pieces on several connections.
func copyOut(ctx context.Context, uri string, _ *sample) error {
	return runQuietly(exec.CommandContext(ctx, "nbdcopy", uri, "null:"))
}

// copyOften calls copyOut often enough for a cost of many ticks.
func copyOften(ctx context.Context, uri string, s *sample) error {
	const times = 8
	s.Bytes *= times
	for range times {
		if err := copyOut(ctx, uri, s); err != nil {
			return err
		}
	}
	return nil
}

// readRandomly returns a load that reads random blocks on one connection for 3 seconds, depth at once.
func readRandomly(depth int) load {
	const block = 4096
	return func(ctx context.Context, uri string, s *sample) error {
		out, err := exec.CommandContext(ctx, "fio", "--name=random", "--ioengine=nbd", "--uri="+uri, "--rw=randread",
			"--bs="+strconv.Itoa(block), "--runtime=3", "--time_based", "--iodepth="+strconv.Itoa(depth), "--output-format=json").Output()
		if err != nil {
			return fmt.Errorf("fio: %w", err)
		}
		s.Ops, err = parseFio(out)
		s.Bytes = block * s.Ops
		return err
	}
}

// parseFio returns the number of reads from fio's output. Other text may precede the JSON.
func parseFio(out []byte) (int64, error) {
	var result struct {
		Jobs []struct {
			Read struct {
				Total int64 `json:"total_ios"`
			} `json:"read"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out[max(0, bytes.IndexByte(out, '{')):], &result); err != nil {
		return 0, fmt.Errorf("reading fio's results: %w", err)
	}
	if len(result.Jobs) != 1 || result.Jobs[0].Read.Total == 0 {
		return 0, errors.New("fio says that it read nothing")
	}
	return result.Jobs[0].Read.Total, nil
}

// scaleOps scales a sample of random reads to opsShown reads, so that tools of different speed compare.
func (s *sample) scaleOps() {
	const opsShown = 100_000
	f := opsShown / float64(s.Ops)
	s.User, s.Sys, s.Wall = s.User*f, s.Sys*f, s.Wall*f
	s.Bytes, s.Ops = s.Bytes/s.Ops*opsShown, opsShown
}

// cpuTime returns the CPU time of a process with all its threads so far, in seconds.
func cpuTime(pid int) (user, sys float64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(stat)
}

// parseStat parses fields 14 and 15 of proc_pid_stat(5), in hundredths of a second. The second field is a name in
// parentheses that may contain any character.
func parseStat(stat []byte) (user, sys float64, err error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, 0, fmt.Errorf("reading the CPU time of a process: it says %q", stat)
	}
	user, userErr := strconv.ParseFloat(string(fields[11]), 64)
	sys, sysErr := strconv.ParseFloat(string(fields[12]), 64)
	return user / 100, sys / 100, errors.Join(userErr, sysErr)
}

// awaitSocket blocks until a server accepts connections.
func awaitSocket(ctx context.Context, socket string) error {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for the server: %w", err)
		}
	}
}
