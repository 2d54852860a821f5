package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"cairn/internal/test/nginx"
)

// nginxCPU returns the CPU time of nginx so far, in seconds. Its child processes do the work.
func nginxCPU(n *nginx.Server) (sum float64, err error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", n.Pid()))
	if err != nil {
		return 0, err
	}
	for _, child := range strings.Fields(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			return 0, err
		}
		user, sys, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		sum += user + sys
	}
	return sum, nil
}
