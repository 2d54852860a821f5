package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// webAnswer is a hostile answer. The connection is closed after it, unless goesOn is set.
type webAnswer struct {
	name   string
	goesOn bool
	do     func(*exchange)
}

const (
	ok      = "HTTP/1.1 200 OK\r\n"
	chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
)

func webAnswers() []webAnswer {
	all := []webAnswer{
		{"slow: silence", false, func(e *exchange) { <-e.calm.Done() }},
		{"closed", false, func(*exchange) {}},
		{"cut anywhere", false, func(e *exchange) { all := e.whole(); e.send(all[:e.IntN(len(all))]) }},
		{"slow: answer", true, func(e *exchange) { e.drip(e.whole()) }},
		{"slow: body", true, func(e *exchange) {
			all := e.whole()
			n := min(len(all), 100)
			e.send(all[:n])
			e.drip(all[n:])
		}},
		{"endless header", false, func(e *exchange) { e.sendf(ok); e.flood("X-A: aaaaaaaaaaaaaaa\r\n", 64<<20) }},
		{"endless field", false, func(e *exchange) { e.sendf(ok + "X-A: "); e.flood("aaaaaaaaaaaaaaaa", 64<<20) }},
		{"endless empty lines", false, func(e *exchange) { e.flood("\r\n", 64<<20) }},
		{"slow: endless header", false, func(e *exchange) { e.sendf(ok); e.drip(bytes.Repeat([]byte("X-A: a\r\n"), 10_000)) }},
		{"1xx storm", false, func(e *exchange) { e.flood("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", 64<<20) }},
		{"1xx, then right", true, func(e *exchange) { e.sendf("HTTP/1.1 100 Continue\r\n\r\n"); e.answerHonestly() }},
		{"switching protocols", false, func(e *exchange) {
			e.sendf("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
			e.flood("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 1<<20)
		}},
		{"wrong length", false, sendWrongLength},
		{"no length", false, func(e *exchange) { e.sendf(ok + "\r\n"); e.send(e.body) }},
		{"no length, endless", false, func(e *exchange) { e.sendf(ok + "\r\n"); e.flood("\x00", 1<<30) }},
		{"chunked, a byte too long", true, func(e *exchange) { e.sendf(chunked+"%x\r\n%s\r\n0\r\n\r\n", len(e.body)+1, string(e.body)+"x") }},
		{"chunked, endless", false, func(e *exchange) { e.sendf(chunked); e.flood("1\r\nx\r\n", 256<<20) }},
		{"chunked, zeros", false, func(e *exchange) { e.sendf(chunked + "7fffffffffffffff\r\n"); e.flood("\x00", 1<<30) }},
		{"chunked, broken", false, func(e *exchange) {
			e.sendf(chunked+"%s\r\nabc", e.choose("ffffffffffffffffff", "-1", "xyz", "", " 3", "3 ; x", "0x3"))
		}},
		{"chunked, endless extension", false, func(e *exchange) { e.sendf(chunked + "3;"); e.flood("aaaaaaaa", 64<<20) }},
		{"chunked, endless trailer", false, func(e *exchange) {
			e.sendf(chunked+"%x\r\n%s\r\n0\r\n", len(e.body), e.body)
			e.flood("X-A: aaaaaaaaaaaaaaa\r\n", 64<<20)
		}},
		{"both lengths", false, func(e *exchange) {
			e.sendf(ok+"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%s", len(e.body), e.body)
		}},
		{"content coding", true, func(e *exchange) {
			e.answer("Content-Encoding: "+e.choose("gzip", "br", "zstd", "x\x1b[2J", "gzip, gzip")+"\r\n", e.body)
		}},
		{"redirect", true, sendRedirect},
		{"status", true, sendStatus},
		{"odd status line", false, func(e *exchange) {
			e.sendf("%s\r\nContent-Length: %d\r\n\r\n%s",
				e.choose("HTTP/9.9 200 OK", "ICY 200 OK", "HTTP/1.1 2e2", "HTTP/1.1 -200 x", "HTTP/1.1 99999 x", "HTTP/1.0 200 OK", "\x00", "SSH-2.0-x"),
				len(e.body), e.body)
		}},
		{"wrong range", true, func(e *exchange) {
			e.sendf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %s\r\nContent-Length: %d\r\n\r\n",
				e.choose("0-1/2", "9-3/1", "0-18446744073709551615/*", "*/0"), len(e.body))
			e.send(e.body)
		}},
		{"multipart range", true, func(e *exchange) {
			body := fmt.Sprintf("--b\r\nContent-Range: bytes 0-%d/%d\r\n\r\n%s\r\n--b--\r\n", len(e.body), len(e.body), e.body)
			e.sendf("HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=b\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}},
		{"cookies", true, func(e *exchange) { e.answer(strings.Repeat("Set-Cookie: a=bbbbbbbbbbbbbbbbbbbb\r\n", 1000), e.body) }},
		{"false ETag", true, func(e *exchange) {
			e.answer(fmt.Sprintf("ETag: \"%d\"\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n", e.Uint32()), e.bytes(len(e.body)))
		}},
		{"web page", true, func(e *exchange) {
			e.sendf(ok + "Content-Type: text/html\r\nContent-Length: 17\r\n\r\n<html>log in</htm")
		}},
		{"HTTP/2 frames", false, sendFrames},
		{"two answers", true, func(e *exchange) {
			e.answerHonestly()
			e.sendf(ok + "Content-Length: 5\r\n\r\nfalse")
		}},
		{"bytes after the answer", true, func(e *exchange) { e.answerHonestly(); e.send(e.bytes(1 + e.IntN(10_000))) }},
		{"body for HEAD", true, func(e *exchange) { e.head = false; e.answer("", e.body) }},
		{"honest, then closed", false, func(e *exchange) { e.answerHonestly() }},
	}
	return append(all, bodyAnswers()...)
}

// bodyAnswers are correct HTTP with wrong bytes. None of them is the index of another image.
func bodyAnswers() []webAnswer {
	zeros := make([]byte, 128<<20)
	encoder, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		panic(err)
	}
	bomb := encoder.EncodeAll(zeros, nil)
	var squeezed bytes.Buffer
	w := gzip.NewWriter(&squeezed)
	_, _ = w.Write(zeros[:100<<20])
	_ = w.Close()
	wrong := func(name string, change func(e *exchange, body []byte) []byte) webAnswer {
		return webAnswer{"body: " + name, true, func(e *exchange) { e.answer("", change(e, bytes.Clone(e.body))) }}
	}
	return []webAnswer{
		wrong("a flipped bit", func(e *exchange, body []byte) []byte {
			if len(body) > 0 {
				body[e.IntN(len(body))] ^= 1 << e.IntN(8)
			}
			return body
		}),
		wrong("random", func(e *exchange, body []byte) []byte { return e.bytes(len(body)) }),
		wrong("truncated", func(e *exchange, body []byte) []byte { return body[:e.IntN(len(body)+1)] }),
		wrong("longer", func(e *exchange, body []byte) []byte { return append(body, e.bytes(1+e.IntN(100))...) }),
		wrong("twice", func(_ *exchange, body []byte) []byte { return append(body, body...) }),
		wrong("rotten tail", func(e *exchange, body []byte) []byte {
			return append(body[:len(body)/2], e.bytes(len(body)/2)...)
		}),
		wrong("zstd bomb", func(*exchange, []byte) []byte { return bomb }),
		wrong("gzip bomb", func(*exchange, []byte) []byte { return squeezed.Bytes() }),
		wrong("window of 2 GiB", func(_ *exchange, body []byte) []byte {
			// A frame with a window descriptor and no content size, and one block of a repeated byte.
			return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x03, 0xff, 0x0f}, body...)
		}),
		wrong("numbers", func(e *exchange, body []byte) []byte { // of an index: offsets, counts and sizes
			for range 1 + e.IntN(3) {
				if n := len(body) / 8; n > 0 {
					values := []uint64{0, 1, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1<<64 - 1}
					binary.LittleEndian.PutUint64(body[8*e.IntN(n):], values[e.IntN(len(values))])
				}
			}
			return body
		}),
		{"body: endless zeros", false, func(e *exchange) {
			e.sendf(ok + "Content-Length: 629145600\r\n\r\n")
			e.flood("\x00", 600<<20)
		}},
		{"body: valid head, endless rows", false, func(e *exchange) {
			e.sendf(chunked+"7fffffffffffffff\r\n%s", e.body[:min(64, len(e.body))])
			e.flood("\x00\x00\x01\x00\x00\x00\x00\x00aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 600<<20)
		}},
	}
}

func (e *exchange) bytes(n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(e.Uint32())
	}
	return data
}

func sendWrongLength(e *exchange) {
	right := len(e.body)
	length := e.choose(fmt.Sprint(right/2), fmt.Sprint(right+1+e.IntN(1000)), fmt.Sprint(uint64(1)<<62), "99999999999999999999",
		"-1", "+5", "0x10", "", fmt.Sprintf("%d\r\nContent-Length: %d", right, right+1), fmt.Sprintf("%d, %d", right, right))
	e.sendf(ok+"Content-Length: %s\r\n\r\n%s", length, e.body)
}

func sendRedirect(e *exchange) {
	to := e.choose("", e.path, e.path+"?"+fmt.Sprint(e.Uint32()), "/elsewhere", "http://127.0.0.1:1/", "http://localhost:1/x", "http://[::1]:1/",
		"file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:x", "//", "http://user:secret@127.0.0.1:1/", "http://h\u009b31m\u202e.invalid/",
		"http://"+strings.Repeat("a", 5000), "http://%zz/", "?", "#", "http:///x", "http://127.0.0.1:99999/")
	e.sendf("HTTP/1.1 %s Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", e.choose("301", "302", "303", "307", "308", "300", "305"), to)
}

func sendStatus(e *exchange) {
	retry := e.choose("", "", "Retry-After: 0\r\n", "Retry-After: -5\r\n", "Retry-After: 1e9\r\n", "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
		"Retry-After: 1\r\n", "Retry-After: 18446744073709551616\r\n")
	e.sendf("HTTP/1.1 %s %s\r\n%sWWW-Authenticate: Basic realm=x\r\nContent-Length: 3\r\n\r\nno\n",
		e.choose("204", "304", "400", "401", "403", "404", "407", "408", "410", "416", "421", "425", "429", "429", "500", "503", "503", "504", "599", "999"),
		e.choose("x", "\x1b[2J\x07", "cairn: error: forged", ""), retry)
}

// sendFrames sends frames of HTTP/2, which cairn does not offer.
func sendFrames(e *exchange) {
	frame := func(kind byte, payload string) string {
		return string([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, 0, 0, 0, 0, 0}) + payload
	}
	e.sendf("%s", frame(4, ""))
	e.flood(e.choose(
		frame(3, "\x00\x00\x00\x00"),                 // RST_STREAM
		frame(4, "\x00\x04\x00\x00\x00\x00"),         // SETTINGS with a window of 0
		frame(6, "12345678"),                         // PING
		frame(7, "\x00\x00\x00\x00\x00\x00\x00\x00"), // GOAWAY
		frame(8, "\x7f\xff\xff\xff"),                 // WINDOW_UPDATE
		frame(9, strings.Repeat("a", 1000)),          // CONTINUATION
	), 16<<20)
}
