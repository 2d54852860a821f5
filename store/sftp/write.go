package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"strings"

	"cairn/store"
)

// What OpenSSH offers beside version 3; each is used if it is there.
const (
	extFsync       = "fsync@openssh.com"
	extPosixRename = "posix-rename@openssh.com"
	extHardlink    = "hardlink@openssh.com"
)

// Temporary files lie beside what they will be. Neither casync gc nor desync prune look at them, for they are not
// called like a chunk.
const (
	tempPrefix = ".cairn-"
	tempSuffix = ".tmp"
)

const (
	dirMode   = 0o755
	maxLitter = 1000
	// How often others may have taken the name again between our removing it and our renaming.
	maxReplaces = 20
)

func tempName() string { return tempPrefix + rand.Text() + tempSuffix }

func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// Write implements store.Bucket. The object is written to a temporary file in its directory, flushed and renamed,
// and the directory is flushed.
//
// Of servers that lack OpenSSH's extensions this asks for less, and so they promise less. Without
// fsync@openssh.com nothing is flushed: after a power cut of the server the object may be absent, or damaged under
// its name. Without posix-rename@openssh.com an object that is replaced is removed first: for a moment, and after a
// failure just then, there is none. A server that does not let a directory be opened may lose the name, not the
// bytes, in a power cut.
//
// A Write whose context ends, or whose connection breaks, while the server renames has an error, and the object may
// be there nevertheless, whole.
func (b *Bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, (*writing).replace)
}

// Create implements store.Creator, as Write does its work: a name is linked to only if it is free. Without
// hardlink@openssh.com it relies on the server to refuse to rename onto a file, as version 3 wants it, and looks
// first, since some servers do not.
func (b *Bucket) Create(ctx context.Context, name string, data []byte) error {
	return b.put(ctx, name, data, (*writing).create)
}

func (b *Bucket) put(ctx context.Context, name string, data []byte, publish func(*writing) error) error {
	return b.call(ctx, "writing", name, func(c *conn, final string) error {
		b.pickUp(c)
		w := &writing{ctx: ctx, bucket: b, conn: c, final: final, temp: path.Join(path.Dir(final), tempName())}
		err := w.write(data)
		if err == nil {
			err = publish(w)
		}
		w.leave(err)
		return err
	})
}

// pickUp removes what was left when connections broke.
func (b *Bucket) pickUp(c *conn) {
	b.mu.Lock()
	litter := b.litter
	b.litter = nil
	b.mu.Unlock()
	for _, temp := range litter {
		c.post(pathPacket(typeRemove, temp))
	}
}

// writing is one object on its way.
type writing struct {
	ctx         context.Context
	bucket      *Bucket
	conn        *conn
	final, temp string
	handle      string // of the temporary file, while it is open
	dir         string // a handle of its directory, where the server has that
}

// leave closes what is open and, after an error, removes the temporary file.
func (w *writing) leave(err error) {
	for _, handle := range []string{w.handle, w.dir} {
		if handle != "" {
			w.conn.closeHandle(handle)
		}
	}
	if err == nil {
		return
	}
	w.conn.post(pathPacket(typeRemove, w.temp))
	if b := w.bucket; w.conn.failed() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.litter) < maxLitter {
			b.litter = append(b.litter, w.temp)
		}
	}
}

// write makes the temporary file, whole and flushed.
func (w *writing) write(data []byte) error {
	err := w.open()
	for tries := 0; hasCode(err, statusNoSuchFile) && tries < 3; tries++ {
		if err := w.makeDir(path.Dir(w.final)); err != nil {
			return err
		}
		err = w.open()
	}
	if err != nil {
		return err
	}
	return w.fill(data)
}

// open opens the temporary file and, to flush it later, its directory; one round trip for both.
func (w *writing) open() error {
	create, err := w.conn.start(w.ctx, createPacket(w.temp, uint32(w.bucket.o.Mode.Perm())))
	if err != nil {
		return err
	}
	dir, err := w.startDir(path.Dir(w.temp))
	if err != nil {
		w.conn.abandon(create)
		return err
	}
	a, err := w.conn.wait(w.ctx, create)
	if err == nil {
		w.handle, err = a.handle()
	}
	if dir == nil {
		return err
	}
	a, dirErr := w.conn.wait(w.ctx, dir)
	if dirErr == nil {
		w.dir, _ = a.handle() // not every server opens directories
	}
	return errors.Join(err, dirErr)
}

// startDir asks for a handle of a directory, if there is a use for it.
func (w *writing) startDir(dir string) (*request, error) {
	if !w.conn.offers(extFsync) {
		return nil, nil
	}
	return w.conn.start(w.ctx, openPacket(dir, flagRead))
}

// fill writes, flushes and closes the temporary file. Its requests are all under way at once, as far as they fit
// into the window; the server works them off in order, as they concern one file.
func (w *writing) fill(data []byte) error {
	var sent []*request
	send := func(p packet) error {
		if len(sent) == window/blockSize {
			if err := w.done(sent[0]); err != nil {
				return err
			}
			sent = sent[1:]
		}
		r, err := w.conn.start(w.ctx, p)
		sent = append(sent, r)
		return err
	}
	for off := 0; off < len(data); off += blockSize {
		block := data[off:min(off+blockSize, len(data))]
		if err := send(writePacket(w.handle, int64(off), block)); err != nil {
			return err
		}
	}
	if w.conn.offers(extFsync) {
		if err := send(pathPacket(typeExtended, extFsync, w.handle)); err != nil {
			return err
		}
	}
	if err := send(pathPacket(typeClose, w.handle)); err != nil {
		return err
	}
	w.handle = ""
	for _, r := range sent {
		if err := w.done(r); err != nil {
			return err
		}
	}
	return nil
}

// done waits until the server has done what was asked of it.
func (w *writing) done(r *request) error {
	a, err := w.conn.wait(w.ctx, r)
	if err != nil {
		return err
	}
	return a.status()
}

// replace gives the temporary file its name, whatever has it.
func (w *writing) replace() error {
	if w.conn.offers(extPosixRename) {
		return w.named(pathPacket(typeExtended, extPosixRename, w.temp, w.final))
	}
	for tries := 0; ; tries++ {
		err := w.named(pathPacket(typeRename, w.temp, w.final))
		if !hasCode(err, statusFailure) || tries == maxReplaces {
			return err
		}
		err = w.conn.do(w.ctx, pathPacket(typeRemove, w.final))
		if err != nil && !hasCode(err, statusNoSuchFile) {
			return err
		}
	}
}

// create gives the temporary file its name if nothing has it.
func (w *writing) create() error {
	if w.conn.offers(extHardlink) {
		err := w.named(pathPacket(typeExtended, extHardlink, w.temp, w.final))
		if err == nil {
			return w.conn.do(w.ctx, pathPacket(typeRemove, w.temp))
		}
		if !hasCode(err, statusFailure) && !hasCode(err, statusUnsupported) {
			return err
		}
	}
	if err := w.taken(); err != nil {
		return err
	}
	err := w.named(pathPacket(typeRename, w.temp, w.final))
	if hasCode(err, statusFailure) {
		return errors.Join(w.taken(), err)
	}
	return err
}

// taken is ErrExists if the name is not free.
func (w *writing) taken() error {
	_, err := w.conn.attributes(w.ctx, pathPacket(typeLstat, w.final))
	switch {
	case err == nil:
		return store.ErrExists
	case hasCode(err, statusNoSuchFile):
		return nil
	}
	return err
}

// named sends a request that gives the file its name, and flushes the directory right behind it.
func (w *writing) named(p packet) error {
	r, err := w.conn.start(w.ctx, p)
	if err != nil {
		return err
	}
	var flushed *request
	if w.dir != "" {
		if flushed, err = w.conn.start(w.ctx, pathPacket(typeExtended, extFsync, w.dir)); err != nil {
			return err
		}
	}
	if err := w.done(r); err != nil || flushed == nil {
		return err
	}
	return w.flushed(flushed)
}

// flushed waits for the flush of a directory. Not every file system has that; but one that fails is an error.
func (w *writing) flushed(r *request) error {
	err := w.done(r)
	if _, refused := errors.AsType[*status](err); refused && !hasCode(err, statusFailure) {
		return nil
	}
	return err
}

// makeDir makes a directory with its parents, and flushes the name of each that it made. Most servers do not tell
// that a directory exists from other failures: what is opened there next will.
func (w *writing) makeDir(dir string) error {
	parent := path.Dir(dir)
	if dir == w.bucket.path("") && !w.bucket.o.MakeRoot {
		return fmt.Errorf("the directory %s: %w", w.bucket, store.ErrNotFound)
	}
	err := w.conn.do(w.ctx, mkdirPacket(dir, dirMode))
	if hasCode(err, statusNoSuchFile) && parent != dir {
		if err := w.makeDir(parent); err != nil {
			return err
		}
		err = w.conn.do(w.ctx, mkdirPacket(dir, dirMode))
	}
	if hasCode(err, statusFailure) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.flushDir(parent)
}

func (w *writing) flushDir(dir string) error {
	opened, err := w.startDir(dir)
	if err != nil || opened == nil {
		return err
	}
	a, err := w.conn.wait(w.ctx, opened)
	if err != nil {
		return err
	}
	handle, err := a.handle()
	if err != nil {
		return nil // not every server opens directories
	}
	defer w.conn.closeHandle(handle)
	r, err := w.conn.start(w.ctx, pathPacket(typeExtended, extFsync, handle))
	if err != nil {
		return err
	}
	return w.flushed(r)
}
