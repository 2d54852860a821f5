// Package ioprio makes this process one that yields disk and processor to all others. It knows nothing of what
// the process does.
package ioprio

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Idle makes the process yield to all others: its reads and writes are served when nobody else wants the disk
// (IOPRIO_CLASS_IDLE: ioprio_set(2), which not every I/O scheduler heeds), and it runs at nice 19. Threads and
// processes that it starts later inherit both. There is no way back for an unprivileged process. It is an
// errors.ErrUnsupported where there is no such thing; after an error some threads may yield.
func Idle() error {
	done := map[int]bool{}
	for {
		before := len(done)
		if err := idleTasks(done); err != nil {
			return fmt.Errorf("making the process idle: %w", err)
		}
		if len(done) == before {
			return nil
		}
	}
}

// idleTasks is about the threads that are not in done, and adds them to it. Any of them may have started one
// more meanwhile.
func idleTasks(done map[int]bool) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if done[id] {
			continue
		}
		if err := idle(id); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
			return err
		}
		done[id] = true
	}
	return nil
}

// idle is about one thread: linux/ioprio.h.
func idle(task int) error {
	const (
		whoProcess = 1
		classIdle  = 3
		classShift = 13
		lowest     = 19
	)
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(task), classIdle<<classShift)
	if errno != 0 {
		return errno
	}
	return unix.Setpriority(unix.PRIO_PROCESS, task, lowest)
}
