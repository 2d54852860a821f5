package gcroot

import "strconv"

// EndedProcess returns the announcement of a process of this machine that has ended.
func EndedProcess() []byte {
	p := thisProcess()
	ticks, _ := strconv.Atoi(p.Started)
	p.Started = strconv.Itoa(ticks - 1) // another process had the number before
	return p.encode()
}
