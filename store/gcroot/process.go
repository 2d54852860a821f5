package gcroot

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process is the process that made an announcement.
type process struct {
	Host      string `json:"host"`
	Boot      string `json:"boot,omitempty"`      // of the kernel
	Namespace string `json:"namespace,omitempty"` // in which PID counts
	PID       int    `json:"pid"`
	Started   string `json:"started,omitempty"` // in ticks after the boot
	Command   string `json:"command"`
}

// maxProcess limits the bytes of an announcement.
const maxProcess = 4096

var thisProcess = sync.OnceValue(func() process {
	p := process{PID: os.Getpid(), Boot: bootID(), Command: filepath.Base(os.Args[0])}
	p.Host, _ = os.Hostname()
	p.Namespace, _ = os.Readlink("/proc/self/ns/pid")
	p.Started, _ = startOf(p.PID)
	return p
})

func (p process) encode() []byte {
	text, _ := json.Marshal(p) // strings and numbers always have a form
	return append(text, '\n')
}

func decodeProcess(text []byte) (p process, ok bool) { return p, json.Unmarshal(text, &p) == nil }

func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// startOf returns when a process was started. It reports false if there is none of this number.
func startOf(pid int) (start string, exists bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if os.IsNotExist(err) { // /proc may hide the processes of others
		return "", !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	if err != nil {
		return "", true
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	const startTime = 22 - 3 // field 22 of the file, of which three come before rest
	if len(fields) <= startTime {
		return "", true
	}
	return fields[startTime], true
}

// hasEnded reports whether it is certain that the process has ended: it was of this boot of this machine, and is
// not there any more.
func (p process) hasEnded() bool {
	here := thisProcess()
	if p.Boot == "" || p.Boot != here.Boot || p.Namespace == "" || p.Namespace != here.Namespace || p.PID <= 0 || p.Started == "" {
		return false
	}
	started, exists := startOf(p.PID)
	return !exists || started != "" && started != p.Started
}
