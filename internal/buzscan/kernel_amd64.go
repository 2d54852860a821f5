package buzscan

// scan sets masks[i] to the lanes that have a hit in turn i. The text is a window, and behind it what the turns
// take, lane by lane.
func (s *Scanner) scan(text []byte, masks []uint16) {
	var ring [Window*64 + 64]byte
	scan16(&text[Window], turn*len(masks), &s.planes, s.test.Factor, s.test.Limit, &ring, &masks[0])
}
