// Package ioprio makes this process yield the disk and the processor to all others. It does not know
// the work of the process.
package ioprio

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Idle makes the process yield to all others. Its disk requests are served only when no other process
// has any (IOPRIO_CLASS_IDLE of ioprio_set(2), which some I/O schedulers ignore), and it runs at nice 19.
// Threads and processes that it starts later inherit both. An unprivileged process cannot undo this. On
// a kernel without I/O priorities the error is an errors.ErrUnsupported. After an error some threads may
// yield.
func Idle() error {
	done := map[int]bool{}
	for {
		before := len(done)
		if err := setTasksIdle(done); err != nil {
			return fmt.Errorf("making the process idle: %w", err)
		}
		if len(done) == before {
			return nil
		}
	}
}

// setTasksIdle makes the threads that are not in done idle, and adds them to it. Any of them may start
// another thread during the call.
func setTasksIdle(done map[int]bool) error {
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
		if err := setIdle(id); err != nil && !errors.Is(err, unix.ESRCH) { // the thread has ended
			return err
		}
		done[id] = true
	}
	return nil
}

// setIdle makes one thread idle. The constants are those of linux/ioprio.h.
func setIdle(task int) error {
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
