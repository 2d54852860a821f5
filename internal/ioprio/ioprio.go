// Package ioprio makes this process one that yields disk and processor to all others. It knows nothing of what
// the process does.
package ioprio
