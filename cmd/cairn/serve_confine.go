package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"cairn/internal/confine"
	"cairn/internal/openfile"
	"cairn/store/locate"
)

// confine makes the process the one of --user, and takes from it what the server does not need once its sockets are
// open. end undoes nothing: it ends the starter of programs.
func (f *serveFlags) confine(listeners, status []net.Listener, log *slog.Logger) (end func(), err error) {
	if err := f.becomeUser(append(slices.Clone(listeners), status...)); err != nil {
		return nil, fmt.Errorf("--user: %w", err)
	}
	end, limits, err := f.confineCalls(f.usesTLS(), nil, f.locations()...)
	if err == nil {
		err = f.confineFiles(f.filePolicy(append(slices.Clone(listeners), status...)))
	}
	if err != nil {
		end()
		return nil, err
	}
	if limits != nil {
		log.Debug("the process is not fully confined", "err", limits)
	}
	return end, nil
}

// locations returns the locations that the server reads.
func (f *serveFlags) locations() []locate.Location {
	indexes := slices.Clone(f.indexes)
	if f.watchDir != "" {
		indexes = append(indexes, locate.Path(filepath.Join(f.watchDir, "any.caibx")))
	}
	return slices.Concat(f.stores.locations(indexes...), f.indexes, f.seedFlags.locations(), []locate.Location{f.profile})
}

// filePolicy returns the policy for the files that the server opens later.
func (f *serveFlags) filePolicy(listeners []net.Listener) (p confine.Policy) {
	for _, l := range append(slices.Clone(f.indexes), f.profile) {
		if path, local := l.Local(); local {
			p.Read = append(p.Read, replacedFile(path)...)
		}
	}
	for _, l := range slices.Concat(f.groups...) { // a store that is made or mounted later
		if path, local := l.Local(); local {
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				p.Read = append(p.Read, replacedFile(path)...)
			}
		}
	}
	for _, file := range []string{f.Cert, f.Key, f.ClientCA} {
		if file != "" {
			p.Read = append(p.Read, replacedFile(file)...)
		}
	}
	if f.watchDir != "" {
		p.Read = append(p.Read, f.watchDir)
		p.Read = append(p.Read, linkedDirs(f.watchDir)...)
	}
	if f.cache != "" {
		p.Write = append(p.Write, makeDirs(0o700, f.cache)...)
	}
	if len(f.seeds) > 0 { // indexes and records of seeds
		for _, l := range f.seedFlags.locations() {
			if path, local := l.Local(); local {
				p.Read = append(p.Read, replacedFile(path)...)
			}
		}
		p.Write = append(p.Write, makeDirs(0o700, f.state)...)
		p.Read = append(p.Read, deviceIdentityDirs...)
	}
	if len(f.metrics) > 0 { // the process's own figures
		p.Read = append(p.Read, "/proc/self", "/proc/stat")
	}
	for _, file := range []string{f.pidfile, f.record} {
		if file != "" && !openfile.IsStream(file) {
			p.Write = append(p.Write, replacedFile(file)...)
		}
	}
	for _, l := range listeners {
		if at, is := l.Addr().(*net.UnixAddr); is && filepath.IsAbs(at.Name) {
			dir := filepath.Dir(at.Name)
			p.Remove = append(p.Remove, dir)
			if len(f.addresses) == 0 { // the directory is the server's own
				p.RemoveDirs = append(p.RemoveDirs, filepath.Dir(dir))
			}
		}
	}
	return p
}

// linkedDirs returns the directories of the files that links in a directory lead to.
func linkedDirs(dir string) (dirs []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // the server reports it
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 {
			dirs = append(dirs, replacedFile(filepath.Join(dir, e.Name()))...)
		}
	}
	return dirs
}

// becomeUser gives the sockets to --user, becomes that user, and checks that it can write what the server writes.
func (f *serveFlags) becomeUser(listeners []net.Listener) error {
	if f.user == "" {
		return nil
	}
	u, err := confine.LookupUser(f.user)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		at, is := l.Addr().(*net.UnixAddr)
		if !is || !filepath.IsAbs(at.Name) || os.Geteuid() != 0 {
			continue
		}
		err := os.Lchown(at.Name, u.UID, u.GID)
		if err == nil && len(f.addresses) == 0 { // the directory is the server's own
			err = os.Lchown(filepath.Dir(at.Name), u.UID, u.GID)
		}
		if err != nil {
			return err
		}
	}
	if err := u.Become(); err != nil {
		return err
	}
	dirs := makeDirs(0o700, f.cache)
	for _, file := range []string{f.pidfile, f.record} {
		if file != "" && !openfile.IsStream(file) {
			dirs = append(dirs, filepath.Dir(file))
		}
	}
	for _, dir := range dirs {
		err := unix.Access(dir, unix.W_OK|unix.X_OK)
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s cannot write to %s: %w", f.user, dir, err)
		}
	}
	return nil
}
