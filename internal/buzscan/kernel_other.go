//go:build !amd64

package buzscan

func (s *Scanner) scan([]byte, []uint16) { panic("buzscan: no kernel on this machine") }
