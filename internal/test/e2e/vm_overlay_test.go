package e2e

import (
	"encoding/json"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/vmtest"
)

// TestVMOverlays: a guest writes to a disk with snapshot=on, and to an overlay. That overlay, and one that it
// only reads, become local while it runs, by the recipe of docs/vms.md. Then the server is killed. The guest
// continues, and data that it did not write is the image's.
func TestVMOverlays(t *testing.T) {
	t.Parallel()
	g := guests(t)
	index := filepath.Join(g.dir, "data.caibx")
	dir := socketDir(t)
	read := map[string]string{
		"SOCKET": filepath.Join(dir, "socket"), "EXPORT": pinned(t, index),
		"QMP": filepath.Join(dir, "qmp"), "OVERLAY": filepath.Join(t.TempDir(), "read.qcow2"),
	}
	written := map[string]string{
		"SOCKET": read["SOCKET"], "EXPORT": read["EXPORT"], "QMP": read["QMP"],
		"OVERLAY": filepath.Join(t.TempDir(), "written.qcow2"),
	}
	server := serve(t, 1, newNginx(t, g.dir).url+"/data.caibx", "--listen", "unix:"+read["SOCKET"])
	for _, values := range []map[string]string{read, written} {
		must(t, "sh", "-c", strings.Join(recipe(t, "overlay", values), "\n"))
	}
	overlay, another := qemuArgs(t, "overlay-disk", read), qemuArgs(t, "overlay-disk", written)
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "ext4"},
		Init:    guestOverlays,
		Args:    slices.Concat(qemuArgs(t, "snapshot", read), overlay, second(withoutQMP(another))),
	})
	wantLines(t, vm, "guest: for now news", "guest: wrote")
	q := dialQMP(t, read["QMP"])
	lines := recipe(t, "stream", read)
	q.stream(t, lines)
	q.stream(t, second(lines)[1:])
	server.signal(t, syscall.SIGKILL)
	server.wait(t)
	vm.Type(t, "the server is gone")
	wantLines(t, vm, "guest: the server is gone", "guest: written news", "guest: read "+g.dataDigest, "guest: rest "+g.dataDigest,
		"guest: errors 0")
	vm.WaitOff(t, guestPatience)

	must(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", read["OVERLAY"], g.ext4)
	for _, values := range []map[string]string{read, written} {
		if info := must(t, "qemu-img", "info", values["OVERLAY"]); strings.Contains(info, "backing file") {
			t.Errorf("the overlay still has its backing file:\n%s", info)
		}
	}
	if r := run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", written["OVERLAY"], g.ext4); r.status != 1 {
		t.Errorf("qemu-img compare of what was written to: %+v", r)
	}
}

// guestOverlays writes to the second and the third disk and, on command, reads all of the first and the second.
// The disk with snapshot=on is the third, because qemu adds the disks of -drive last.
const guestOverlays = `
mkdir /read /written /snapshot
mount -t ext4 -o ro /dev/vda /read && mount -t ext4 /dev/vdb /written && mount -t ext4 /dev/vdc /snapshot || echo guest: no mounts
for at in /written /snapshot; do
  echo news >$at/news && sync
done
umount /snapshot && mount -t ext4 /dev/vdc /snapshot && echo "guest: for now $(cat /snapshot/news)"
umount /snapshot
echo guest: wrote
read word
echo "guest: $word"
umount /read /written
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/vda /read && mount -t ext4 /dev/vdb /written || echo guest: no mounts
echo "guest: written $(cat /written/news)"
rm /written/news
echo "guest: read $(cd /read && ` + digestAll + `)"
echo "guest: rest $(cd /written && ` + digestAll + `)"
umount /read /written
dmesg | grep -c -E 'I/O error|EXT4-fs error' | sed 's/^/guest: errors /'
`

// second returns the arguments or commands for a second disk of the same kind.
func second(words []string) (all []string) {
	nodes := regexp.MustCompile(`(node-name=|backing=|drive=|"device": "|"node-name": ")(base|disk)\b`)
	for _, word := range words {
		all = append(all, nodes.ReplaceAllString(word, "${1}second-${2}"))
	}
	return all
}

// withoutQMP returns the arguments without those of a socket, which exists already.
func withoutQMP(args []string) []string {
	at := slices.Index(args, "-qmp")
	return slices.Delete(slices.Clone(args), at, at+2)
}

// qmp is a connection to qemu's monitor.
type qmp struct {
	conn    net.Conn
	decoder *json.Decoder
	events  []event // received and not yet awaited
}

// event is an event of qemu, or an answer.
type event struct {
	Event         string
	Data          struct{ Error string }
	Return, Error json.RawMessage
}

func dialQMP(t testing.TB, socket string) *qmp {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(guestPatience)); err != nil {
		t.Fatal(err)
	}
	return &qmp{conn: conn, decoder: json.NewDecoder(conn)}
}

// stream runs the commands of the recipe "stream", or those after the first, as the recipe says.
func (q *qmp) stream(t testing.TB, lines []string) {
	t.Helper()
	for _, line := range lines {
		q.run(t, line)
		if strings.Contains(line, "block-stream") {
			q.await(t, "BLOCK_JOB_COMPLETED")
		}
	}
}

// run runs a command, which must succeed. Events may precede its answer.
func (q *qmp) run(t testing.TB, line string) {
	t.Helper()
	if _, err := q.conn.Write([]byte(line + "\n")); err != nil {
		t.Fatal(err)
	}
	for {
		switch e := q.next(t, line); {
		case e.Error != nil:
			t.Fatalf("qemu answers %s with %s", line, e.Error)
		case e.Return != nil:
			return
		default:
			q.events = append(q.events, e)
		}
	}
}

// await returns when the event has happened without an error. Earlier events are discarded.
func (q *qmp) await(t testing.TB, name string) {
	t.Helper()
	for {
		if len(q.events) == 0 {
			q.events = append(q.events, q.next(t, name))
		}
		e := q.events[0]
		q.events = q.events[1:]
		if e.Event != name {
			continue
		}
		if e.Data.Error != "" {
			t.Fatalf("qemu says that %s: %s", name, e.Data.Error)
		}
		return
	}
}

func (q *qmp) next(t testing.TB, waiting string) (e event) {
	t.Helper()
	if err := q.decoder.Decode(&e); err != nil {
		t.Fatalf("waiting for %s on qemu's monitor: %v", waiting, err)
	}
	return e
}
