package nbd

import "fmt"

// checkRequest returns an error if a request is invalid, or if the server is stopping.
func (t *transmission) checkRequest(q request) error {
	if t.stopping.Err() != nil {
		return errStopping
	}
	allowed, err := t.allowedFlags(q.command)
	if err != nil {
		return err
	}
	allowed |= flagFUA // valid for all commands, though most ignore it
	if unknown := q.flags &^ allowed; unknown != 0 {
		return &refusal{errINVAL, fmt.Sprintf("flags %#x are not known to %v", unknown, q.command)}
	}
	return t.checkRange(q)
}

// allowedFlags returns the flags that are valid for a command, or an error if the export does not
// support the command.
func (t *transmission) allowedFlags(c Command) (uint16, error) {
	switch {
	case c == CmdRead && t.structured:
		return flagDF, nil
	case c == CmdRead:
		return 0, nil
	case t.writer == nil && (c == CmdWrite || c == CmdWriteZeroes || c == cmdTrim):
		return 0, &refusal{errPERM, "the export is read-only"}
	case c == CmdWriteZeroes:
		return flagNoHole, nil
	case c == CmdWrite, c == CmdFlush, c == CmdCache:
		return 0, nil // FLUSH and CACHE do nothing if the device does not support them
	case c == CmdBlockStatus && len(t.contexts) > 0:
		return flagReqOne, nil
	}
	return 0, &refusal{errINVAL, fmt.Sprintf("command %d (%v) is not supported here", uint16(c), c)}
}

func (t *transmission) checkRange(q request) error {
	payload := q.command == CmdRead || q.command == CmdWrite
	switch {
	case q.command == CmdFlush:
		return nil
	case q.length == 0:
		return &refusal{errINVAL, "the length is 0"}
	case payload && q.length > maxPayload:
		return &refusal{errINVAL, fmt.Sprintf("%d bytes are more than %d", q.length, maxPayload)}
	case q.offset <= t.size && uint64(q.length) <= t.size-q.offset:
		return nil
	}
	code := errINVAL
	if q.command == CmdWrite || q.command == CmdWriteZeroes {
		code = errNOSPC
	}
	return &refusal{code, fmt.Sprintf("%d bytes at %d reach beyond the end at %d", q.length, q.offset, t.size)}
}
