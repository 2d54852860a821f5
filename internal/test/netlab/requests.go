package netlab

import (
	"bytes"
	"strconv"
	"strings"
)

// scanner finds the requests in the bytes of an HTTP/1.1 client, in pieces of any size. It stops at any other
// protocol, such as TLS, and at bodies without a length.
type scanner struct {
	found func(method string)
	head  []byte // the beginning of the current request's head
	body  int64  // remaining bytes of a body
	lost  bool   // the bytes are not understood
}

// largestHead is the largest size of a head in bytes.
const largestHead = 64 << 10

func (s *scanner) scan(p []byte) {
	for len(p) > 0 && !s.lost {
		if s.body > 0 {
			n := min(s.body, int64(len(p)))
			p, s.body = p[n:], s.body-n
			continue
		}
		p = s.scanHead(p)
	}
}

// scanHead consumes bytes of a head, and returns the bytes after the head.
func (s *scanner) scanHead(p []byte) []byte {
	const end = "\r\n\r\n"
	known := len(s.head)
	s.head = append(s.head, p...)
	at := bytes.Index(s.head[max(0, known-len(end)+1):], []byte(end))
	if at < 0 {
		s.lost = len(s.head) > largestHead || !mayBeRequest(s.head)
		return nil
	}
	at += max(0, known-len(end)+1) + len(end)
	head := s.head[:at]
	s.head = nil
	s.parseHead(head)
	return p[at-known:]
}

// mayBeRequest reports whether head can begin with a method.
func mayBeRequest(head []byte) bool {
	method, _, _ := bytes.Cut(head, []byte(" "))
	return len(method) <= 10 && len(bytes.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) == 0
}

// parseHead counts the request of a complete head.
func (s *scanner) parseHead(head []byte) {
	line, fields, _ := strings.Cut(string(head), "\r\n")
	words := strings.Split(line, " ")
	if len(words) != 3 || words[0] == "" || !mayBeRequest(head) || !strings.HasPrefix(words[2], "HTTP/1.") {
		s.lost = true
		return
	}
	s.found(words[0])
	for field := range strings.SplitSeq(fields, "\r\n") {
		key, value, _ := strings.Cut(field, ":")
		switch strings.ToLower(key) {
		case "content-length":
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			s.body, s.lost = n, err != nil || n < 0
		case "transfer-encoding":
			s.lost = true
		}
		if s.lost {
			return
		}
	}
}
