package netlab

import (
	"bytes"
	"strconv"
	"strings"
)

// scanner finds the requests in what a client of HTTP/1.1 sends, however it is cut into pieces. It gives up on
// anything else, such as TLS, and on bodies without a length.
type scanner struct {
	found func(method string)
	head  []byte // the request's head as far as it is known
	body  int64  // bytes of a body still to come
	lost  bool   // what comes is not understood
}

// largestHead is how long a head may be.
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

// scanHead takes bytes of a head, and returns those behind it.
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
	s.enter(head)
	return p[at-known:]
}

// mayBeRequest says whether a method begins here.
func mayBeRequest(head []byte) bool {
	method, _, _ := bytes.Cut(head, []byte(" "))
	return len(method) <= 10 && len(bytes.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) == 0
}

// enter counts the request of a whole head.
func (s *scanner) enter(head []byte) {
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
