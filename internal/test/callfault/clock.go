//go:build linux && amd64

package callfault

import (
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Types of entries in the auxiliary vector, getauxval(3).
const (
	auxNull   = 0
	auxIgnore = 1
	auxVDSO   = 33
)

// disableVDSO hides the vDSO from a program that has just been executed, so that it asks the kernel for the time.
// The stack holds the number of arguments, the arguments, 0, the environment, 0, and the auxiliary vector.
func disableVDSO(tid int) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	at := uintptr(r.Rsp)
	count, err := peekWord(tid, at)
	if err != nil {
		return err
	}
	at += 8 * (1 + uintptr(count) + 1)
	for word := uint64(1); word != 0; at += 8 { // the environment
		if word, err = peekWord(tid, at); err != nil {
			return err
		}
	}
	for ; ; at += 16 {
		kind, err := peekWord(tid, at)
		switch {
		case err != nil:
			return err
		case kind == auxNull:
			return errors.New("there is no vDSO to hide")
		case kind == auxVDSO:
			return pokeWord(tid, at, auxIgnore)
		}
	}
}

// shiftTime adds d to the timespec at an address.
func shiftTime(tid int, address uint64, d time.Duration) error {
	seconds, err := peekWord(tid, uintptr(address))
	if err != nil {
		return err
	}
	return pokeWord(tid, uintptr(address), seconds+uint64(int64(d/time.Second)))
}

func peekWord(tid int, at uintptr) (uint64, error) {
	p := make([]byte, 8)
	_, err := unix.PtracePeekData(tid, at, p)
	return binary.LittleEndian.Uint64(p), err
}

func pokeWord(tid int, at uintptr, word uint64) error {
	_, err := unix.PtracePokeData(tid, at, binary.LittleEndian.AppendUint64(nil, word))
	return err
}
