// Command demo makes the data for .ci/demo in pure Go, so that the demo needs nothing but Go: two releases of a
// small image, and a disk image with two slots. It also has a client that reads an export where nbdcopy is not
// installed. It is a tool for developers and not a part of cairn.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

const usage = `usage: demo images DIR         write v1.ext4, v2.ext4 and disk.img, with v1.ext4 in its slot root-a
       demo copy SOCKET FILE  read the default export of the NBD server on the unix socket into a file`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "images":
		return makeImages(args[1])
	case len(args) == 3 && args[0] == "copy":
		return copyExport(ctx, args[1], args[2])
	}
	return errors.New(usage)
}

const (
	imageSize = 48 << 20
	slotSize  = 64 << 20
)

func makeImages(dir string) error {
	v1 := filepath.Join(dir, "v1.ext4")
	for release, path := range []string{v1, filepath.Join(dir, "v2.ext4")} {
		if err := testimages.Ext4(path, testimages.Tree(1, release), imageSize); err != nil {
			return err
		}
	}
	return testimages.GPTDisk(filepath.Join(dir, "disk.img"), 512, testimages.Slots(slotSize, v1, "")...)
}

// copyExport reads the export sequentially: it shows that the bytes are right, and measures no speed.
func copyExport(ctx context.Context, socket, path string) (err error) {
	client, err := nbdtest.Dial(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer client.Close()
	info, err := client.Go("")
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	piece := make([]byte, 1<<20)
	for off := uint64(0); off < info.Size; off += uint64(len(piece)) {
		piece = piece[:min(uint64(len(piece)), info.Size-off)]
		if err := client.Read(ctx, piece, off); err != nil {
			return fmt.Errorf("reading at %d: %w", off, err)
		}
		if _, err := f.Write(piece); err != nil {
			return err
		}
	}
	return client.Disconnect()
}
