package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// job is a task that several tools do one after the other, so that all are measured under the same noise.
type job struct {
	name     string
	bytes    int64 // size of the job's image, holes included; 0 means the size of the images
	commands []command
}

// command is a tool's command for a job. It runs in a directory beside the images ../a and ../b.
type command struct {
	tool    string
	dir     string // the name of the directory, for commands that share one; "" means the tool's name
	env     []string
	args    []string
	prepare func(dir string) error // runs before the measurement; may be nil
	check   func(dir string) error // runs after it; may be nil
	// download returns the bytes that a client downloads with the command's result; nil if it is not a delta.
	download func(dir string) (int64, error)
	server   *server // the command is a server under load; nil if the command itself is measured
}

// suite makes the jobs.
type suite struct {
	cairn, libzstd string // binaries; libzstd is "" if that build is not measured
	disk           string // directory on a disk; "" for none
	socket         string // the socket of servers
}

// jobs returns the jobs in an order in which each finds its input: the store of a, then of a and b.
func (s suite) jobs() []job {
	jobs := []job{
		{name: jobMake, commands: s.withVariants(command{prepare: newStore, args: words("make -s store a.caibx ../a")}, s.builds(),
			command{tool: "casync", prepare: newStore, args: words("casync make --store=store a.caibx ../a")},
			command{tool: "desync", prepare: newStore, args: words("desync make -s store a.caibx ../a")})},
		{name: jobIndex, commands: s.withVariants(command{args: words("make -s store a.caibx ../a")}, s.simd(),
			command{tool: "desync", args: words("desync make again.caibx ../a")})},
		{name: jobUpdate, commands: s.withVariants(command{args: words("make -s store b.caibx ../b")}, s.builds(),
			command{tool: "casync", args: words("casync make --store=store b.caibx ../b")},
			command{tool: "desync", args: words("desync make -s store b.caibx ../b")})},
		{name: jobAssemble, commands: s.withVariants(
			assembleCommand("", "assemble -s store b.caibx b"), s.decoders(),
			assembleCommand("casync", "casync extract --store=store b.caibx b"),
			assembleCommand("desync", "desync extract -s store b.caibx b"))},
		{name: jobSeed, commands: s.withVariants(
			assembleCommand("", "assemble -s store --seed ../a=a.caibx b.caibx b"), s.decoders(),
			assembleCommand("casync", "casync extract --store=store --seed=../a b.caibx b"),
			assembleCommand("desync", "desync extract -s store --seed a.caibx:../a b.caibx b"))},
		{name: jobVerify, commands: s.withVariants(command{args: words("verify b.caibx ../b")}, s.simd(),
			command{tool: "desync", args: words("desync verify-index b.caibx ../b")})},
		s.hugeJob(),
		{name: "serve b, first copy", commands: s.serverCommands(server{load: copyOut})},
		{name: jobCopies, commands: s.serverCommands(server{warm: true, load: copyOften})},
		{name: jobRandom, commands: s.serverCommands(server{warm: true, load: readRandomly(16)})},
	}
	if s.disk != "" {
		jobs = append(jobs, s.diskJob())
	}
	return jobs
}

func words(text string) []string { return strings.Fields(text) }

// variant is a build of cairn with its environment.
type variant struct{ tool, dir, binary, env string }

func (s suite) defaultBuild() variant { return variant{tool: "cairn", binary: s.cairn} }

// builds returns the builds of cairn. Each has its own store.
func (s suite) builds() []variant {
	if s.libzstd == "" {
		return []variant{s.defaultBuild()}
	}
	return []variant{s.defaultBuild(), {tool: libzstd, binary: s.libzstd}}
}

// simd returns the levels of vector instructions. They share a store.
func (s suite) simd() []variant {
	return []variant{
		s.defaultBuild(),
		{tool: "cairn, AVX2", dir: "cairn", binary: s.cairn, env: "CAIRN_SIMD=avx2"},
		{tool: "cairn, no SIMD", dir: "cairn", binary: s.cairn, env: "CAIRN_SIMD=off"},
	}
}

// decoders returns the levels of vector instructions, and the build of cairn that decodes with libzstd.
func (s suite) decoders() []variant { return append(s.simd(), s.builds()[1:]...) }

// withVariants returns c for each variant of cairn, followed by the others.
func (s suite) withVariants(c command, variants []variant, others ...command) []command {
	var commands []command
	for _, v := range variants {
		commands = append(commands, c.runBy(v))
	}
	return append(commands, others...)
}

func (c command) runBy(v variant) command {
	c.tool, c.dir, c.args = v.tool, v.dir, append([]string{v.binary}, c.args...)
	if v.env != "" {
		c.env = []string{v.env}
	}
	return c
}

func assembleCommand(tool, args string) command {
	return command{tool: tool, args: words(args), prepare: removeImage, check: checkImage}
}

// hugeJob returns the job that makes an index of a followed by a hole, 1 TiB together.
func (s suite) hugeJob() job {
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
	return job{name: jobHole, bytes: huge, commands: []command{c.runBy(s.defaultBuild())}}
}

// diskJob returns the job of a make whose store is on a disk; all other files are in memory. Used stores stay
// until the end: after a removal, ext4 examines each recently freed inode before it takes another one, which
// would slow down the next command.
func (s suite) diskJob() job {
	fresh := func(dir string) error {
		disk, err := os.MkdirTemp(s.disk, "make-")
		if err != nil {
			return err
		}
		link := filepath.Join(dir, "disk")
		return errors.Join(os.RemoveAll(link), os.Symlink(disk, link), newStore(disk))
	}
	makes := func(tool, args string) command { return command{tool: tool, prepare: fresh, args: words(args)} }
	return job{name: jobDisk, commands: s.withVariants(
		makes("", "make -s disk/store a.caibx ../a"), s.builds(),
		makes("casync", "casync make --store=disk/store a.caibx ../a"),
		makes("desync", "desync make -s disk/store a.caibx ../a"))}
}

// serverCommands returns servers of b under load: cairn with its store and enough memory for the image, the
// others with the file without holes.
func (s suite) serverCommands(under server) []command {
	under.socket = s.socket
	const here = "../nbd" // the socket, relative to their directories
	return s.withVariants(
		command{server: &under, args: words("serve -s store --memory 4GiB --listen unix:" + here + " b.caibx")},
		[]variant{s.defaultBuild()}, under.qemuCommand("../dense"), under.nbdkitCommand("../dense"))
}

// inMemory is cairn without an image cache.
const inMemory = "cairn, memory"

// serveJobs returns the jobs that read b when it is warm. cairn has it in its image cache, whose file is in the page
// cache, or in its own memory; the others have the plain file. All files are in one file system with holes.
func (s suite) serveJobs() []job {
	loads := []struct {
		name string
		load load
	}{{jobWarmCopies, copyOften}, {jobWarmDeep, readRandomly(64)}, {jobWarmAlone, readRandomly(1)}}
	var jobs []job
	for _, l := range loads {
		under := server{warm: true, load: l.load, socket: s.socket}
		serves := func(tool, options string) command {
			args := words("serve -s store --listen unix:../nbd b.caibx " + options)
			c := command{server: &under, dir: "cairn", prepare: s.makeStore, args: args}.runBy(s.defaultBuild())
			c.tool = tool
			return c
		}
		jobs = append(jobs, job{name: l.name, commands: []command{
			serves("cairn", "--cache cache --prefetch all"), serves(inMemory, "--memory 4GiB"),
			under.qemuCommand("../b"), under.nbdkitCommand("../b"),
		}})
	}
	return jobs
}

// makeStore makes b's store if there is none.
func (s suite) makeStore(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "b.caibx")); err == nil {
		return nil
	}
	cmd := exec.Command(s.cairn, words("make -s store b.caibx ../b")...)
	cmd.Dir = dir
	return runQuietly(cmd)
}

func (v server) qemuCommand(image string) command {
	return command{tool: "qemu-nbd", server: &v, args: append(words("qemu-nbd -t -r -e 16 -f raw -k"), v.socket, image)}
}

func (v server) nbdkitCommand(image string) command {
	return command{tool: "nbdkit", server: &v, args: append(words("nbdkit -f -r -U"), v.socket, "file", image)}
}

// newStore makes an empty store.
func newStore(dir string) error {
	store := filepath.Join(dir, "store")
	return errors.Join(os.RemoveAll(store), os.Mkdir(store, 0o755)) // desync does not create it
}

func removeImage(dir string) error { return os.RemoveAll(filepath.Join(dir, "b")) }
