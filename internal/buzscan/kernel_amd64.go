package buzscan

// scanLanes sets masks[i] to the lanes with a hit in turn i. The text is a window, followed by the
// stretches of the lanes one after another.
func (s *Scanner) scanLanes(text []byte, masks []uint16) {
	var ring [Window*64 + 64]byte
	scan16(&text[Window], turnSize*len(masks), &s.planes, s.test.Factor, s.test.Limit, &ring, &masks[0])
}
