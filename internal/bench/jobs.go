package main

import (
	"errors"
	"os"
	"path/filepath"
)

// job is done by several tools, one after the other, so that all see the same noise.
type job struct {
	name     string
	commands []command
}

// command is how a tool does a job. It runs in a directory of the tool's own, beside the images ../a and ../b.
type command struct {
	tool    string
	args    []string
	prepare func(dir string) error // before the clock runs; may be nil
	check   func(dir string) error // after it; may be nil
	// Of a server: where it listens, and how often its export is copied out, which is what is measured.
	socket string
	copies int
}

// jobs are what is measured, in an order in which each finds what it needs: the store of a, then of b too.
// Servers listen on socket.
func jobs(cairn, socket string) []job {
	return []job{
		{"make", []command{
			{tool: "cairn", prepare: newStore, args: words(cairn, "make", "-s", "store", "a.caibx", "../a")},
			{tool: "casync", prepare: newStore, args: words("casync", "make", "--store=store", "a.caibx", "../a")},
			{tool: "desync", prepare: newStore, args: words("desync", "make", "-s", "store", "a.caibx", "../a")},
		}},
		{"make b, a is stored", []command{
			{tool: "cairn", args: words(cairn, "make", "-s", "store", "b.caibx", "../b")},
			{tool: "casync", args: words("casync", "make", "--store=store", "b.caibx", "../b")},
			{tool: "desync", args: words("desync", "make", "-s", "store", "b.caibx", "../b")},
		}},
		{"assemble b from the store", []command{
			assembles("cairn", cairn, "assemble", "-s", "store", "b.caibx", "b"),
			assembles("casync", "casync", "extract", "--store=store", "b.caibx", "b"),
			assembles("desync", "desync", "extract", "-s", "store", "b.caibx", "b"),
		}},
		{"assemble b, a is a seed", []command{
			assembles("cairn", cairn, "assemble", "-s", "store", "--seed", "../a=a.caibx", "b.caibx", "b"),
			assembles("casync", "casync", "extract", "--store=store", "--seed=../a", "b.caibx", "b"),
			assembles("desync", "desync", "extract", "-s", "store", "--seed", "a.caibx:../a", "b.caibx", "b"),
		}},
		{"verify b", []command{
			{tool: "cairn", args: words(cairn, "verify", "b.caibx", "../b")},
			{tool: "desync", args: words("desync", "verify-index", "b.caibx", "../b")},
		}},
		{"serve b, copied once", servers(cairn, socket, 1)},
		{"serve b, copied 5 times", servers(cairn, socket, 5)},
	}
}

func words(w ...string) []string { return w }

func assembles(tool string, args ...string) command {
	return command{tool: tool, args: args, prepare: noImage, check: sameImage}
}

// servers serve b: cairn out of its store, with room for all of it in memory, the others the file itself.
func servers(cairn, socket string, copies int) []command {
	return []command{
		{tool: "cairn", socket: socket, copies: copies,
			args: words(cairn, "serve", "-s", "store", "--memory", "4GiB", "--listen", "unix:"+socket, "b.caibx")},
		{tool: "qemu-nbd", socket: socket, copies: copies,
			args: words("qemu-nbd", "-t", "-r", "-e", "16", "-f", "raw", "-k", socket, "../b")},
		{tool: "nbdkit", socket: socket, copies: copies,
			args: words("nbdkit", "-f", "-r", "-U", socket, "file", "../b")},
	}
}

// newStore empties the store.
func newStore(dir string) error {
	store := filepath.Join(dir, "store")
	return errors.Join(os.RemoveAll(store), os.Mkdir(store, 0o755)) // desync wants it to be there
}

func noImage(dir string) error { return os.RemoveAll(filepath.Join(dir, "b")) }
