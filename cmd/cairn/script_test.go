package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"cairn/internal/confine"
	"cairn/internal/starter"
	"cairn/internal/test/need"
	"cairn/testimages"
)

func TestMain(m *testing.M) {
	if starter.IsStarter() || confine.IsProbe() { // of a cairn that is this program
		main()
	}
	testscript.Main(m, map[string]func(){"cairn": main})
}

// updateScripts makes the scripts expect the present output of commands.
var updateScripts = flag.Bool("update", false, "rewrite the expected output in testdata/script")

// TestScripts runs testdata/script, which pins the outputs of the commands. `make check` leaves the scripts to `make
// test`, because the race detector has the packages' own tests.
func TestScripts(t *testing.T) {
	if need.Race && testing.Short() {
		t.Skip("without the race detector only: it takes minutes")
	}
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *updateScripts,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits, "image": image, "slots": slots, "flip": flip, "mbr": mbr,
		},
	})
}

// exits STATUS COMMAND... runs a command, and fails unless it exits with STATUS.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) >= 2, "exits STATUS COMMAND...")
	status := 0
	if failed, ok := errors.AsType[*exec.ExitError](ts.Exec(args[1], args[2:]...)); ok {
		status = failed.ExitCode()
	}
	if want := number(ts, args[0]); status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}

// image FILE PART... writes a file of parts, each random:SEED:BYTES or zeros:BYTES.
func image(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) >= 1, "image FILE PART...")
	var data []byte
	for _, part := range args[1:] {
		switch words := strings.Split(part, ":"); words[0] {
		case "random":
			data = append(data, testimages.Random(uint64(number(ts, words[1])), number(ts, words[2]))...)
		case "zeros":
			data = append(data, make([]byte, number(ts, words[1]))...)
		default:
			ts.Fatalf("%s is not a part of an image", part)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o644))
}

// slots FILE IMAGE writes a disk image with two slots of 4 MiB. root-a holds the image.
func slots(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 2, "slots FILE IMAGE")
	ts.Check(testimages.GPTDisk(ts.MkAbs(args[0]), 512, testimages.Slots(4<<20, ts.MkAbs(args[1]), "")...))
}

// flip FILE OFFSET changes a byte. FILE may be a pattern that matches one file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 2, "flip FILE OFFSET")
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	if err != nil || len(files) != 1 {
		ts.Fatalf("%s is %q, %v", args[0], files, err)
	}
	data, err := os.ReadFile(files[0])
	ts.Check(err)
	data[number(ts, args[1])] ^= 1
	ts.Check(errors.Join(os.Chmod(files[0], 0o644), os.WriteFile(files[0], data, 0o644)))
}

// mbr FILE writes a disk image of 4 MiB with an MBR and one Linux partition.
func mbr(ts *testscript.TestScript, neg bool, args []string) {
	wantArgs(ts, neg, len(args) == 1, "mbr FILE")
	disk := make([]byte, 4<<20)
	copy(disk[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0}) // 2048 sectors from sector 2048 on
	copy(disk[510:], []byte{0x55, 0xaa})
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), disk, 0o644))
}

func wantArgs(ts *testscript.TestScript, neg, right bool, usage string) {
	if neg || !right {
		ts.Fatalf("usage: %s", usage)
	}
}

func number(ts *testscript.TestScript, text string) int {
	n, err := strconv.Atoi(text)
	ts.Check(err)
	return n
}
