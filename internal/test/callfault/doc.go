// Package callfault runs a program and lets one of its system calls fail. A fault names a kind of call, such as
// openat, the number of the call among those of its kind, and how it fails: with an errno, or with fewer bytes than
// requested. The calls of all threads and of forked copies of the process count together. Programs that the process
// executes run untraced.
//
// The package uses ptrace, and exists on amd64 only. It knows nothing of cairn.
package callfault
