package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"cairn/internal/confine"
	"cairn/internal/starter"
	"cairn/store/locate"
)

// The values of --confine.
const (
	confineAuto    = "auto"
	confineOff     = "off"
	confineRequire = "require"
)

// confineVariable is the environment variable with the value of --confine where the flag is not given.
const confineVariable = "CAIRN_CONFINE"

// deviceIdentityDirs are the directories that tell which device a file is, for --state.
var deviceIdentityDirs = []string{"/sys/block", "/sys/dev", "/sys/devices"}

// confinement holds --confine, and takes from the process what its job does not need.
type confinement struct {
	word    string
	starter *starter.Starter // starts ssh and the program of --exec; nil if this process starts them
	needs   locate.Needs
	on      bool
}

func (f *confinement) addFlags(c *cobra.Command) {
	f.word = confineAuto
	c.Flags().Var(choiceFlag(&f.word, confineAuto, confineOff, confineRequire), "confine",
		"`when` to give up the rights that the job does not need: auto (as far as the kernel can), off, or require (fail if "+
			"it cannot); the default is in "+confineVariable)
	addCheck(c, func([]string) error {
		word := os.Getenv(confineVariable)
		if word == "" || c.Flags().Changed("confine") {
			return nil
		}
		if err := choiceFlag(&f.word, confineAuto, confineOff, confineRequire).set(word); err != nil {
			return fmt.Errorf("%s=%q: %w", confineVariable, word, err)
		}
		return nil
	})
}

// errStartsProgram reports that the process itself must be able to start programs.
var errStartsProgram = errors.New("a profile of AWS gets its keys from a program (credential_process)")

// checkSupport returns an error if --confine requires more than the kernel can do.
func (f *confinement) checkSupport() error {
	if f.word != confineRequire {
		return nil
	}
	err := confine.Permitted()
	if err == nil {
		err = confine.Supported()
	}
	return requiredError(err)
}

func requiredError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("--confine %s: %w", confineRequire, err)
}

// explainDenied returns the error's text. If the cause may be the confinement, the text says so.
func (f *confinement) explainDenied(err error) string {
	if f.on && errors.Is(err, fs.ErrPermission) {
		return err.Error() + " (a confined process opens only the files of its start: --confine)"
	}
	return err.Error()
}

// confineCalls denies the process the system calls that the job does not need, from before the first byte from a network
// on. It starts the starter if the locations or the job need programs. end ends the starter. hidden tells whether the
// process holds secrets besides those of the identity. A reason why the process is not confined is returned with
// --confine auto, as limits.
func (f *access) confineCalls(hidden bool, programs []starter.Command, locations ...locate.Location) (end func(), limits, err error) {
	end = func() {}
	c := &f.confinement
	if c.word == confineOff {
		return end, nil, nil
	}
	a, err := f.openAccess()
	if err != nil {
		return end, nil, err
	}
	c.needs = a.Needs(locations...)
	forbidden := confine.Permitted()
	if limits = forbidden; limits == nil {
		limits = confine.Supported()
	}
	if c.needs.AWSKeys && limits == nil {
		if starts, err := locate.AWSStartsProgram(); err != nil || starts {
			limits = errors.Join(err, errStartsProgram)
		}
	}
	switch {
	case limits != nil && c.word == confineRequire:
		return end, nil, requiredError(limits)
	case forbidden != nil, errors.Is(limits, errStartsProgram):
		return end, limits, nil
	}
	if commands := slices.Concat(programs, c.needs.Commands); len(commands) > 0 {
		if c.starter, err = starter.New(commands, os.Stderr); err != nil {
			return end, nil, err
		}
		end = c.starter.Close
	}
	if hidden || c.needs.AWSKeys || len(f.identity.Files()) > 0 || os.Getenv(locate.TokenVariable) != "" {
		err = confine.HideMemory()
	}
	if err == nil {
		err = confine.Calls(confine.Policy{Connect: c.needs.Connect})
	}
	c.on = err == nil
	if err != nil && c.word != confineRequire {
		limits, err = err, nil
	}
	return end, limits, err
}

// confineFiles limits the files that the process can open to those of the policy, and to those that the locations of
// confineCalls need.
func (f *access) confineFiles(p confine.Policy) error {
	c := &f.confinement
	if !c.on {
		return nil
	}
	p.Connect = c.needs.Connect
	p.Read = append(p.Read, c.needs.Paths...)
	for _, file := range f.identity.Files() {
		p.Read = append(p.Read, replacedFile(file)...)
	}
	if c.needs.AWSKeys {
		for _, file := range locate.AWSFiles() {
			p.Read = append(p.Read, replacedFile(file)...)
		}
	}
	if p.Connect {
		p.Read = append(p.Read, resolverFiles()...)
		_, _ = x509.SystemCertPool() // reads the authorities; they are kept
	}
	_, _ = time.Now().Zone() // reads the time zone
	err := confine.Files(p)
	if err != nil && c.word != confineRequire {
		return nil
	}
	return err
}

// replacedFile returns what must be readable for a file that other programs replace: its directory, and that of the file
// behind a link. For a file of the root directory, that is the file alone.
func replacedFile(path string) (paths []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	paths = []string{path}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		paths = append(paths, real)
	}
	for i, p := range paths {
		if dir := filepath.Dir(p); dir != "/" {
			paths[i] = dir
		}
	}
	return slices.DeleteFunc(paths, func(p string) bool { // of pipes, which are read by now
		return slices.Contains([]string{"/dev", "/dev/fd", "/proc/self/fd"}, p)
	})
}

// resolverFiles returns the files that package net reads to find the address of a name. Other programs replace
// resolv.conf. Where it is not a link into a directory of its own, all of /etc must be readable.
func resolverFiles() []string {
	const conf = "/etc/resolv.conf"
	real, err := filepath.EvalSymlinks(conf)
	if err != nil || filepath.Dir(real) == "/etc" {
		return []string{"/etc"}
	}
	return []string{"/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/protocols", "/etc/mdns.allow", filepath.Dir(real)}
}

// makeDirs makes the named directories that do not exist, and returns all of them except "". One that cannot be made is
// an error of the job that needs it.
func makeDirs(mode os.FileMode, dirs ...string) []string {
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return dir == "" })
	for _, dir := range dirs {
		_ = os.MkdirAll(dir, mode)
	}
	return dirs
}
