package nbd_test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"cairn/nbd"
)

// skipIfShort skips a test that starts many programs, unless `make test` runs it.
func skipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts many programs")
	}
}

// TestPortable repeats cases of the test suites of nbdkit and libnbd that apply to other servers.
// Each case is a script for nbdsh, written anew. want is the file with the exports' bytes.
func TestPortable(t *testing.T) {
	skipIfShort(t)
	d, path := newImage(t)
	longest := strings.Repeat("n", 4096)
	r := startServer(t, &nbd.Server{},
		&nbd.Export{Name: "ro", Description: "an image", Canonical: "ro@1234", Device: d, MultiConn: true},
		&nbd.Export{Name: "rw", Device: &ram{data: bytes.Clone(d.data)}, MultiConn: true},
		&nbd.Export{Name: longest, Device: newLazy(data(512))},
		&nbd.Export{Name: "empty", Device: &plain{}},
		&nbd.Export{Name: "größe", Device: newLazy(data(512), zero(1))})
	prelude := fmt.Sprintf(`
import errno, os, threading
socket = %q
want = open(%q, "rb").read()
KiB, MiB = 1024, 1024*1024
def connect(h, name, **options):
    for option, value in options.items():
        getattr(h, "set_" + option)(value)
    h.set_export_name(name)
    h.connect_unix(socket)
    return h
def fails(number, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number)
        return
    assert False, "it succeeds"
`, r.socket, path)
	for name, script := range map[string]string{
		"eflags": `
connect(h, "ro")
assert h.is_read_only() and h.can_multi_conn() and h.can_cache() and h.can_df() and h.can_meta_context("base:allocation") == False
assert not (h.can_flush() or h.can_fua() or h.can_trim() or h.can_zero() or h.can_fast_zero() or h.is_rotational())
w = connect(nbd.NBD(), "rw")
assert not w.is_read_only() and w.can_flush() and w.can_fua() and w.can_zero() and w.can_multi_conn()`,

		"block sizes": `
connect(h, "ro")
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32*MiB`,

		"the largest payload": `
connect(h, "ro")
h.set_strict_mode(0)
assert h.pread(len(want), 0) == want
fails(errno.EINVAL, h.pread, 32*MiB + 1, 0)
assert h.pread(1, 1) == want[1:2]`,

		"export information": `
h.set_opt_mode(True)
h.set_full_info(True)
connect(h, "ro")
h.opt_info()
assert h.get_canonical_export_name() == "ro@1234" and h.get_export_description() == "an image"
assert h.get_size() == len(want)
h.set_export_name("absent")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_export_name("ro@1234")
h.opt_go()
assert h.get_size() == len(want) and h.pread(512, 512) == want[512:1024]`,

		"list": `
h.set_opt_mode(True)
connect(h, "")
names = []
assert h.opt_list(lambda name, description: names.append((name, description)) or 0) == 5
assert names[0] == ("ro", "an image") and len(names[2][0]) == 4096 and names[4][0] == "größe"
h.opt_abort()`,

		"names": `
connect(h, "n" * 4096)
assert h.get_size() == 512
assert connect(nbd.NBD(), "").get_size() == len(want)
odd = connect(nbd.NBD(), "größe")
assert odd.get_size() == 513 and odd.pread(2, 511)[1] == 0
fails(errno.ENOENT, connect, nbd.NBD(), "n" * 4095)`,

		"an empty export": `
connect(h, "empty")
h.set_strict_mode(0)
assert h.get_size() == 0
fails(errno.EINVAL, h.pread, 1, 0)
fails(errno.EINVAL, h.pread, 0, 0)`,

		"no structured replies": `
connect(h, "ro", request_structured_replies=False)
assert not h.get_structured_replies_negotiated() and not h.can_df()
assert h.pread(MiB, 3*MiB - 100) == want[3*MiB - 100:4*MiB - 100]
h.set_strict_mode(0)
fails(errno.EINVAL, h.block_status, 512, 0, lambda *a: 0)
assert h.pread(1, 0) == want[:1]`,

		"structured reads": `
connect(h, "ro")
parts = []
def part(data, offset, status, error):
    assert error.value == 0
    parts.append((offset, len(data), status))
got = h.pread_structured(3*MiB, 2*MiB, part)
assert got == want[2*MiB:5*MiB]
assert any(s == nbd.READ_HOLE for _, _, s in parts) and any(s == nbd.READ_DATA for _, _, s in parts)
assert sum(n for _, n, s in parts if s == nbd.READ_DATA) == MiB
parts = []
h.pread_structured(64*KiB, 3*MiB - 32*KiB, part, nbd.CMD_FLAG_DF)
assert len(parts) == 1`,

		"extents": `
h.add_meta_context("base:allocation")
connect(h, "ro")
entries = []
def extent(context, offset, e, error):
    assert context == "base:allocation" and error.value == 0
    entries.extend(zip(e[::2], e[1::2]))
h.block_status(len(want), 0, extent)
assert sum(n for n, _ in entries) == len(want)
at = 0
for n, state in entries:
    assert state in (0, 3)
    if state: assert not want[at:at+n].strip(b"\0")
    at += n
assert sum(1 for _, state in entries if state) == 3
entries = []
h.block_status(8*MiB, 3*MiB, extent, nbd.CMD_FLAG_REQ_ONE)
assert entries == [(4*MiB, 3)]`,

		"bad requests, and then good ones": `
connect(h, "ro")
h.set_strict_mode(0)
size = h.get_size()
for n, at, number in ((512, size, 22), (512, size - 1, 22), (512, 1 << 62, 22), (512, (1 << 63) - 1, 22), (0, 0, 22)):
    fails(number, h.pread, n, at)
for f in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0), lambda: h.pwrite(b"x", size)):
    fails(errno.EPERM, f)
h.flush()
assert h.pread(512, 0, nbd.CMD_FLAG_FUA) == want[:512]
fails(errno.EINVAL, h.cache, 512, size)
assert h.pread(512, 0) == want[:512]`,

		"bad writes": `
connect(h, "rw")
h.set_strict_mode(0)
size = h.get_size()
fails(errno.ENOSPC, h.pwrite, b"x" * 512, size - 511)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, 0)
fails(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
h.pwrite(b"y" * 1000, 77, nbd.CMD_FLAG_FUA)
h.zero(100, 177, nbd.CMD_FLAG_NO_HOLE)
h.flush()
assert h.pread(1000, 77) == b"y" * 100 + b"\0" * 100 + b"y" * 800`,

		"several connections are one device": `
a, b, c = (connect(nbd.NBD(), "rw") for _ in range(3))
a.pwrite(b"abc", 12*MiB)
b.flush()
assert c.pread(3, 12*MiB) == b"abc"`,

		"prefetch": `
connect(h, "ro")
h.cache(MiB, 0)
h.cache(len(want), 0)
assert h.pread(MiB, 0) == want[:MiB]`,

		"many requests in flight": `
connect(h, "ro")
pending = []
for i in range(400):
    buf = nbd.Buffer(64*KiB)
    at = i * 7919 * 5 % (len(want) - 64*KiB)
    pending.append((h.aio_pread(buf, at), buf, at))
for cookie, buf, at in pending:
    while not h.aio_command_completed(cookie): h.poll(-1)
    assert buf.to_bytearray() == want[at:at+64*KiB]`,

		"threads": `
def work(seed):
    c = connect(nbd.NBD(), "ro")
    for i in range(40):
        at = (seed * 1000003 + i * 7919) % (len(want) - 5000)
        assert c.pread(5000, at) == want[at:at+5000]
    c.shutdown()
    done.append(seed)
done = []
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(done) == 8`,

		"goodbye with requests in flight": `
connect(h, "ro")
bufs = [nbd.Buffer(MiB) for _ in range(8)]
cookies = [h.aio_pread(b, 8*MiB) for b in bufs]
h.aio_disconnect()
while not h.aio_is_closed(): h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)
assert all(b.to_bytearray() == want[8*MiB:9*MiB] for b in bufs)`,

		"clients that die": `
for i in range(20):
    pid = os.fork()
    if pid == 0:
        c = connect(nbd.NBD(), "ro")
        for _ in range(4): c.aio_pread(nbd.Buffer(MiB), i * 512*KiB)
        os._exit(0)
    os.waitpid(pid, 0)
connect(h, "ro")
assert h.pread(512, 0) == want[:512]`,

		"handshakes that are given up": `
for _ in range(20):
    c = nbd.NBD()
    c.set_opt_mode(True)
    connect(c, "ro")
    c.opt_info()
    c.opt_abort()
connect(h, "ro")
assert h.pread(512, 0) == want[:512]`,

		"the oldest way to connect": `
connect(h, "ro", handshake_flags=0)
assert h.get_protocol() == "newstyle"
assert h.get_size() == len(want) and h.pread(512, 0) == want[:512] and h.is_read_only()
fixed = connect(nbd.NBD(), "rw", handshake_flags=nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE)
assert fixed.get_protocol() == "newstyle-fixed" and fixed.pread(512, 2*MiB) == want[2*MiB:2*MiB+512]`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mustRun(t, "nbdsh", "-c", prelude+script)
		})
	}
}

// TestNBDKitFilters reads through nbdkit's proxy, whose checkwrite filter compares all bytes that
// are copied into it.
func TestNBDKitFilters(t *testing.T) {
	skipIfShort(t)
	d, path := newImage(t)
	damaged := &plain{data: bytes.Clone(d.data)}
	damaged.data[9*mib]++
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: d, MultiConn: true}, &nbd.Export{Name: "y", Device: damaged})
	through := func(name string) []string {
		return []string{path, "--", "[", "nbdkit", "--exit-with-parent", "--filter=checkwrite", "nbd", "socket=" + r.socket, "export=" + name, "]"}
	}
	mustRun(t, "nbdcopy", through("x")...)
	if out, status := runClient(t, "nbdcopy", through("y")...); status == 0 {
		t.Errorf("a byte differs, and checkwrite does not see it:\n%s", out)
	}
}

// TestListers checks the output of other clients' lists.
func TestListers(t *testing.T) {
	r := startTCP(t, &nbd.Server{}, twoExports()...)
	if out := mustRun(t, "qemu-nbd", "--list", "-k", r.socket); !strings.Contains(out, "exports available: 2") ||
		!strings.Contains(out, "description: the first") || !strings.Contains(out, "base:allocation") {
		t.Errorf("qemu-nbd --list says:\n%s", out)
	}
	host, port, err := net.SplitHostPort(r.address)
	if err != nil {
		t.Fatal(err)
	}
	if out := mustRun(t, "nbd-client", "-l", host, port); !strings.Contains(out, "one") || !strings.Contains(out, "two") {
		t.Errorf("nbd-client -l says:\n%s", out)
	}
}
