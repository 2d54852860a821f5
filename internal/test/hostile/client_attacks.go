package main

import (
	"encoding/binary"
	"time"

	"cairn/nbd/nbdtest"
)

// clientAttack is a kind of attack on an NBD server. do has a connection on which nothing was sent.
type clientAttack struct {
	name string
	do   func(*peer)
}

func clientAttacks() []clientAttack {
	return []clientAttack{
		{"silence", func(p *peer) { p.hold(12 * time.Second) }},
		{"half a handshake", func(p *peer) {
			all := append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptGo, nbdtest.InfoData(p.name()))...)
			p.send(all[:p.IntN(len(all))])
			p.hold(12 * time.Second)
		}},
		{"handshake by bytes", func(p *peer) {
			all := append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptGo, nbdtest.InfoData(p.name()))...)
			p.drip(all, 50*time.Millisecond)
			p.collect(100 * time.Millisecond)
		}},
		{"garbage", func(p *peer) {
			if p.chance(0.5) {
				p.greet()
			}
			p.send(p.bytes(1 + p.IntN(100<<10)))
			p.collect(time.Second)
		}},
		{"random options", sendRandomOptions},
		{"huge option", func(p *peer) {
			p.greet()
			head := nbdtest.OptionBytes(uint32(p.IntN(12)), nil)
			lengths := []uint32{64<<10 + 1, 1 << 20, 1<<20 + 1, 1 << 31, 1<<32 - 1}
			binary.BigEndian.PutUint32(head[12:], lengths[p.IntN(len(lengths))])
			p.send(head)
			p.send(make([]byte, p.IntN(2<<20)))
			p.hold(5 * time.Second)
		}},
		{"list storm", func(p *peer) {
			p.greet()
			for range 300 {
				if !p.option(nbdtest.OptList, nil) {
					break
				}
			}
			if p.chance(0.5) {
				p.collect(time.Second)
			}
		}},
		{"info storm", func(p *peer) {
			p.greet()
			p.option(nbdtest.OptList, nil)
			for _, name := range append(p.exports, p.exports...) {
				if !p.option(nbdtest.OptInfo, nbdtest.InfoData(name)) {
					break
				}
			}
			p.option(nbdtest.OptInfo, nbdtest.InfoData(p.name()))
			p.collect(time.Second)
		}},
		{"STARTTLS and garbage", func(p *peer) {
			p.greet()
			p.option(nbdtest.OptStartTLS, p.bytes(p.IntN(2)*8))
			p.send(append([]byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, p.bytes(500)...))
			p.collect(time.Second)
		}},
		{"negotiation storm", func(p *peer) {
			p.greet()
			for range 40 {
				data := binary.BigEndian.AppendUint32(nbdtest.AppendString(nil, p.name()), uint32(p.IntN(2000)))
				for range p.IntN(1000) {
					data = nbdtest.AppendString(data, "base:")
				}
				p.option(nbdtest.OptStructuredReply, nil)
				p.option(nbdtest.OptExtendedHeaders, nil)
				p.option(nbdtest.OptListMetaContext, data)
				if !p.option(nbdtest.OptSetMetaContext, data) {
					break
				}
			}
			p.collect(time.Second)
		}},
		{"old option", func(p *peer) {
			p.greet()
			p.option(nbdtest.OptExportName, []byte(p.name()))
			p.send(p.requestBytes())
			p.collect(time.Second)
		}},
		{"crowd", func(p *peer) {
			for range 100 {
				if p.dial() != nil {
					break
				}
				if p.chance(0.3) {
					p.choose()
				}
			}
			p.hold(15 * time.Second)
		}},
		{"wrong magic", afterGo(func(p *peer) {
			p.send(p.bytes(28 * (1 + p.IntN(100))))
			p.collect(time.Second)
		})},
		{"half a request", afterGo(func(p *peer) {
			p.send(p.requestBytes()[:1+p.IntN(27)])
			p.hold(20 * time.Second)
		})},
		{"random requests", afterGo(func(p *peer) {
			for range 1 + p.IntN(500) {
				if !p.send(p.requestBytes()) {
					break
				}
			}
			p.collect(500 * time.Millisecond)
		})},
		{"requests, then close", afterGo(func(p *peer) {
			var all []byte
			for range 1 + p.IntN(3000) {
				all = append(all, p.requestBytes()...)
			}
			p.send(all)
		})},
		{"replies that are not collected", afterGo(func(p *peer) {
			p.add(0, 200, 0)
			p.send(requests(200, nbdtest.Request{Length: []uint32{4096, 200_000, 1 << 20, 30 << 20}[p.IntN(4)]}))
			p.hold(20 * time.Second)
		})},
		{"replies by bytes", afterGo(func(p *peer) {
			p.add(0, 128, 0)
			p.send(requests(128, nbdtest.Request{Length: 1 << 20}))
			for range 20 + p.IntN(100) {
				_ = p.conn.SetReadDeadline(time.Now().Add(time.Second))
				if n, err := p.conn.Read(make([]byte, 1)); n == 0 || err != nil {
					break
				}
				pause(p.ctx, 100*time.Millisecond)
			}
		})},
		{"write by bytes", afterGo(func(p *peer) {
			p.add(0, 1, 0)
			p.send(requests(1, nbdtest.Request{Command: nbdtest.CmdWrite, Length: 32 << 20}))
			p.drip(make([]byte, 20+p.IntN(200)), 50*time.Millisecond)
		})},
		{"large write", afterGo(func(p *peer) {
			p.add(0, 1, 0)
			p.send(requests(1, nbdtest.Request{Command: nbdtest.CmdWrite, Length: 32 << 20}))
			p.send(make([]byte, 32<<20))
			p.collect(time.Second)
		})},
		{"end in the middle", afterGo(func(p *peer) {
			p.add(0, 101, 0)
			p.send(requests(100, nbdtest.Request{Length: uint32(1 + p.IntN(100_000))}))
			p.send(requests(1, nbdtest.Request{Command: nbdtest.CmdDisc}))
			p.send(p.requestBytes())
			p.collect(500 * time.Millisecond)
		})},
		{"wrong flags", afterGo(func(p *peer) {
			for _, command := range []uint16{nbdtest.CmdFlush, nbdtest.CmdTrim, nbdtest.CmdCache, nbdtest.CmdWriteZeroes, nbdtest.CmdBlockStatus} {
				p.add(0, 10, 0)
				p.send(requests(10, nbdtest.Request{Command: command, Flags: uint16(p.Uint32()), Length: uint32(p.IntN(1 << 22))}))
			}
			p.collect(500 * time.Millisecond)
		})},
		{"idle", afterGo(func(p *peer) { p.hold(40 * time.Second) })},
		{"greedy", afterGo(func(p *peer) { // reads everything, as fast as it gets it
			p.add(0, 64, 0)
			p.send(requests(64, nbdtest.Request{Offset: uint64(p.IntN(1 << 20)), Length: 64 << 10}))
			p.collect(500 * time.Millisecond)
		})},
	}
}

func afterGo(do func(*peer)) func(*peer) {
	return func(p *peer) {
		if p.choose() {
			do(p)
		}
	}
}

// sendRandomOptions sends options with data that is right, random or cut.
func sendRandomOptions(p *peer) {
	p.greet()
	for range 1 + p.IntN(64) {
		id := uint32(p.IntN(13))
		if p.chance(0.1) {
			id = p.Uint32()
		}
		data := p.bytes(p.IntN(200))
		if p.chance(0.6) {
			data = nbdtest.InfoData(p.name())
		}
		if p.chance(0.2) {
			data = data[:p.IntN(len(data)+1)]
		}
		if p.chance(0.1) { // a length that does not fit
			p.send(binary.BigEndian.AppendUint32(nbdtest.OptionBytes(id, nil)[:12], uint32(p.IntN(5000))))
		}
		if !p.option(id, data) {
			break
		}
	}
	p.collect(time.Second)
}
