//go:build !amd64

package buzscan

func (s *Scanner) scanLanes([]byte, []uint16) { panic("buzscan: no kernel on this machine") }
