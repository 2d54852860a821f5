package ioprio

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// TestIdle makes the test's own process idle, which affects no other process.
func TestIdle(t *testing.T) {
	ionice := need.Tool(t, "ionice")
	if err := Idle(); err != nil {
		t.Fatal(err)
	}
	if err := Idle(); err != nil {
		t.Errorf("a second time: %v", err)
	}
	checkTasks(t, ionice)

	started, end := make(chan bool), make(chan bool)
	for range 8 { // each on a thread of its own
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			started <- true
			<-end
		}()
		<-started
	}
	checkTasks(t, ionice)
	close(end)

	for _, tool := range []struct{ name, want string }{{"ionice", "idle"}, {"nice", "19"}} {
		out, err := exec.Command(need.Tool(t, tool.name)).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != tool.want {
			t.Errorf("a child's %s is %q, %v, want %q", tool.name, got, err, tool.want)
		}
	}
}

// checkTasks checks the priorities of all threads with other tools.
func checkTasks(t *testing.T, ionice string) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		out, err := exec.Command(ionice, "-p", task.Name()).Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != "idle" {
			t.Errorf("I/O priority of thread %s is %q, %v", task.Name(), got, err)
		}
		stat, err := os.ReadFile("/proc/self/task/" + task.Name() + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		_, fields, _ := strings.Cut(string(stat), ") ")
		if nice, err := strconv.Atoi(strings.Fields(fields)[16]); err != nil || nice != 19 {
			t.Errorf("nice value of thread %s is %d, %v", task.Name(), nice, err)
		}
	}
}
