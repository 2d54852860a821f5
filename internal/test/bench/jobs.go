package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// job is done by several tools, one after the other, so that all see the same noise.
type job struct {
	name     string
	bytes    int64 // of image that the job is about, holes included; 0 is the size of the images
	commands []command
}

// command is how a tool does a job. It runs in a directory, beside the images ../a and ../b.
type command struct {
	tool    string
	dir     string // the name of the directory, for commands that share one; "" is the tool's
	env     []string
	args    []string
	prepare func(dir string) error // before the clock runs; may be nil
	check   func(dir string) error // after it; may be nil
	server  *server                // what is measured is a server under load; nil if it is the command itself
}

// suite makes the jobs.
type suite struct {
	cairn, libzstd string // binaries; "" for none of the build that links libzstd
	disk           string // directory on a disk; "" for none
	socket         string // where servers listen
}

// jobs are what is measured, in an order in which each finds what it needs: the store of a, then of b too.
func (s suite) jobs() []job {
	jobs := []job{
		{name: jobMake, commands: s.with(command{prepare: newStore, args: words("make -s store a.caibx ../a")}, s.builds(),
			command{tool: "casync", prepare: newStore, args: words("casync make --store=store a.caibx ../a")},
			command{tool: "desync", prepare: newStore, args: words("desync make -s store a.caibx ../a")})},
		{name: jobIndex, commands: s.with(command{args: words("make -s store a.caibx ../a")}, s.simd(),
			command{tool: "desync", args: words("desync make again.caibx ../a")})},
		{name: jobUpdate, commands: s.with(command{args: words("make -s store b.caibx ../b")}, s.builds(),
			command{tool: "casync", args: words("casync make --store=store b.caibx ../b")},
			command{tool: "desync", args: words("desync make -s store b.caibx ../b")})},
		{name: jobAssemble, commands: s.with(
			assembles("", "assemble -s store b.caibx b"), s.decoders(),
			assembles("casync", "casync extract --store=store b.caibx b"),
			assembles("desync", "desync extract -s store b.caibx b"))},
		{name: jobSeed, commands: s.with(
			assembles("", "assemble -s store --seed ../a=a.caibx b.caibx b"), s.decoders(),
			assembles("casync", "casync extract --store=store --seed=../a b.caibx b"),
			assembles("desync", "desync extract -s store --seed a.caibx:../a b.caibx b"))},
		{name: jobVerify, commands: s.with(command{args: words("verify b.caibx ../b")}, s.simd(),
			command{tool: "desync", args: words("desync verify-index b.caibx ../b")})},
		s.sparse(),
		{name: "serve b, first copy", commands: s.servers(server{load: copyOut})},
		{name: jobCopies, commands: s.servers(server{warm: true, load: copyOften})},
		{name: jobRandom, commands: s.servers(server{warm: true, load: readRandomly(16)})},
	}
	if s.disk != "" {
		jobs = append(jobs, s.onDisk())
	}
	return jobs
}

func words(text string) []string { return strings.Fields(text) }

// variant is a way to run cairn.
type variant struct{ tool, dir, binary, env string }

func (s suite) plain() variant { return variant{tool: "cairn", binary: s.cairn} }

// builds are the builds of cairn. Each has a store of its own.
func (s suite) builds() []variant {
	if s.libzstd == "" {
		return []variant{s.plain()}
	}
	return []variant{s.plain(), {tool: libzstd, binary: s.libzstd}}
}

// simd are the levels of vector instructions, with one store.
func (s suite) simd() []variant {
	return []variant{
		s.plain(),
		{tool: "cairn, AVX2", dir: "cairn", binary: s.cairn, env: "CAIRN_SIMD=avx2"},
		{tool: "cairn, no SIMD", dir: "cairn", binary: s.cairn, env: "CAIRN_SIMD=off"},
	}
}

// decoders are the levels of vector instructions, and the build of cairn that decodes with libzstd.
func (s suite) decoders() []variant { return append(s.simd(), s.builds()[1:]...) }

// with is c done by each variant of cairn, then by the others.
func (s suite) with(c command, variants []variant, others ...command) []command {
	var commands []command
	for _, v := range variants {
		commands = append(commands, c.by(v))
	}
	return append(commands, others...)
}

func (c command) by(v variant) command {
	c.tool, c.dir, c.args = v.tool, v.dir, append([]string{v.binary}, c.args...)
	if v.env != "" {
		c.env = []string{v.env}
	}
	return c
}

func assembles(tool, args string) command {
	return command{tool: tool, args: words(args), prepare: noImage, check: sameImage}
}

// sparse is the index of an image of 1 TiB, which is a and a hole.
func (s suite) sparse() job {
	const huge = 1 << 40
	var size int64
	image := func(dir string) string { return filepath.Join(dir, "../a") }
	extend := func(dir string) error {
		info, err := os.Stat(image(dir))
		if err != nil {
			return err
		}
		size = info.Size()
		return os.Truncate(image(dir), huge)
	}
	restore := func(dir string) error {
		return errors.Join(os.Truncate(image(dir), size), os.Remove(filepath.Join(dir, "huge.caibx")))
	}
	c := command{prepare: extend, check: restore, args: words("make -s store huge.caibx ../a")}
	return job{name: jobHole, bytes: huge, commands: []command{c.by(s.plain())}}
}

// onDisk is a make whose store, unlike all else, is on a disk. Stores that were used stay until all is done: what is
// removed burdens who comes next, as ext4 looks at each inode that was freed in the last minutes before it takes
// another one.
func (s suite) onDisk() job {
	fresh := func(dir string) error {
		disk, err := os.MkdirTemp(s.disk, "make-")
		if err != nil {
			return err
		}
		link := filepath.Join(dir, "disk")
		return errors.Join(os.RemoveAll(link), os.Symlink(disk, link), newStore(disk))
	}
	makes := func(tool, args string) command { return command{tool: tool, prepare: fresh, args: words(args)} }
	return job{name: jobDisk, commands: s.with(
		makes("", "make -s disk/store a.caibx ../a"), s.builds(),
		makes("casync", "casync make --store=disk/store a.caibx ../a"),
		makes("desync", "desync make -s disk/store a.caibx ../a"))}
}

// servers serve b under load: cairn out of its store, with room for all of it in memory, the others the file itself, without holes.
func (s suite) servers(under server) []command {
	under.socket = s.socket
	const here = "../nbd" // the socket, as seen from where they run
	return s.with(
		command{server: &under, args: words("serve -s store --memory 4GiB --listen unix:" + here + " b.caibx")},
		[]variant{s.plain()}, under.qemu("../dense"), under.nbdkit("../dense"))
}

// inMemory is cairn without its image cache.
const inMemory = "cairn, memory"

// serveJobs are about b when all of it is warm: cairn has it in its image cache, whose file the kernel has in memory,
// and besides in its own memory; the others have the plain file. All lie in one file system, and all know the holes.
func (s suite) serveJobs() []job {
	loads := []struct {
		name string
		load load
	}{{jobWarmCopies, copyOften}, {jobWarmDeep, readRandomly(64)}, {jobWarmAlone, readRandomly(1)}}
	var jobs []job
	for _, l := range loads {
		under := server{warm: true, load: l.load, socket: s.socket}
		serves := func(tool, options string) command {
			c := command{server: &under, dir: "cairn", prepare: s.stored, args: words("serve -s store --listen unix:../nbd b.caibx " + options)}
			c = c.by(s.plain())
			c.tool = tool
			return c
		}
		jobs = append(jobs, job{name: l.name, commands: []command{
			serves("cairn", "--cache cache --prefetch all"), serves(inMemory, "--memory 4GiB"),
			under.qemu("../b"), under.nbdkit("../b"),
		}})
	}
	return jobs
}

// stored makes b's store, unless that is done.
func (s suite) stored(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "b.caibx")); err == nil {
		return nil
	}
	cmd := exec.Command(s.cairn, words("make -s store b.caibx ../b")...)
	cmd.Dir = dir
	return quietly(cmd)
}

func (v server) qemu(image string) command {
	return command{tool: "qemu-nbd", server: &v, args: append(words("qemu-nbd -t -r -e 16 -f raw -k"), v.socket, image)}
}

func (v server) nbdkit(image string) command {
	return command{tool: "nbdkit", server: &v, args: append(words("nbdkit -f -r -U"), v.socket, "file", image)}
}

// newStore empties the store.
func newStore(dir string) error {
	store := filepath.Join(dir, "store")
	return errors.Join(os.RemoveAll(store), os.Mkdir(store, 0o755)) // desync wants it to be there
}

func noImage(dir string) error { return os.RemoveAll(filepath.Join(dir, "b")) }
