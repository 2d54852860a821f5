package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestReadme runs the README's commands for users, its blocks of sh, in their order. It replaces only the names of
// servers, disks and directories.
func TestReadme(t *testing.T) {
	need.Root(t)
	for _, tool := range []string{"nbdinfo", "nbdcopy", "qemu-img"} {
		need.Tool(t, tool)
	}
	dir, p := t.TempDir(), small(t)
	images := mkdir(t, filepath.Join(dir, "images"))
	for name, image := range map[string]string{"v1": p.a, "v2": p.b} {
		writeFile(t, mkdir(t, filepath.Join(dir, "build", name)), "root.squashfs", readFile(t, image))
	}
	writeFile(t, images, "root.squashfs", readFile(t, p.b))
	writeFile(t, images, "v1.img", readFile(t, p.a))
	slots := func(disk, prefix string) string {
		a := testimages.Part{Name: prefix + "root-a", Size: 8 * mib, Image: p.a}
		b := testimages.Part{Name: prefix + "root-b", Size: 8 * mib}
		if err := testimages.GPTDisk(disk, 512, a, b); err != nil {
			t.Fatal(err)
		}
		return disk
	}
	slots(filepath.Join(images, "disk.img"), "")
	label := fmt.Sprintf("readme-%d-", os.Getpid())
	node := looptest.Attach(t, slots(filepath.Join(dir, "machine.img"), label), 512)
	s3 := storetest.S3(t, storetest.S3Options{})
	s3.Bucket(t, "images")
	s3Keys(t, s3)
	t.Setenv("AWS_ENDPOINT_URL", "http://"+s3.Host)
	cairn(t, "make", "s3://images/v1.caibx", p.a)
	names := strings.NewReplacer(
		"https://images.example.com", newNginx(t, dir).url, "/srv/images", images, "/build/", dir+"/build/",
		"PARTLABEL=root", "PARTLABEL="+label+"root", "/dev/sda3", node+"p2", "@root", node+"p1",
		"/run/", dir+"/", "/var/cache/cairn", dir+"/cache", "/media/usb", mkdir(t, filepath.Join(dir, "usb")))
	forget := `cairn() { case $1 in assemble | plan) set -- "$@" --state "" ;; esac; command cairn "$@"; }; set -x; `
	readme := string(readFile(t, "../../../README.md"))
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(readme, -1)
	if len(blocks) < 5 {
		t.Fatalf("the README has %d blocks of commands", len(blocks))
	}
	for _, block := range blocks {
		script := names.Replace(block[1])
		if strings.HasPrefix(script, "cairn serve") {
			server := startProgram(t, nil, "bash", "-c", "cd "+images+"; exec "+script)
			defer server.wait(t)
			defer server.signal(t, os.Interrupt)
			server.stdout.await(t, "nbd+unix:///v2")
			continue
		}
		command := exec.Command("bash", "-euo", "pipefail", "-c", forget+script)
		command.Dir = images
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, copied := range []string{node + "p2", filepath.Join(images, "v2.img")} {
		if n := fileSize(t, p.b); sum(t, copied, 0, n) != sum(t, p.b, 0, n) {
			t.Errorf("%s does not hold the image", copied)
		}
	}
}
