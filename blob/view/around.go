package view

const (
	leastAround = 64 << 10  // bytes: less than a chunk is not worth the thought
	mostAround  = 768 << 10 // bytes around a chunk that was missed
	firstAround = 384 << 10
	aroundPrior = 2 << 20 // bytes of good experience that everybody begins with
	crowd       = 4       // chunks waited for that halve it
)

// around decides how much of a chunk's neighbourhood comes along when it is missed: as much as the link holds, as
// it costs no more time then, less the less of it proved useful, and less the more is asked for at once: that fills the
// link by itself. Pure: it is told what happened.
type around struct {
	issued, used int64 // bytes of neighbours, of late
}

func newAround() around { return around{issued: aroundPrior, used: aroundPrior} }

// window is how many bytes of neighbours are worth their fetch on a link that holds so many, beside so many other
// chunks that somebody waits for.
func (a *around) window(product int64, others int) int64 {
	most := min(max(product, firstAround), mostAround) * crowd / int64(crowd+max(others, 0))
	share := float64(a.used) / float64(a.issued)
	switch n := int64(float64(most) * share); {
	case share < 0.1 || n < leastAround:
		return 0
	default:
		return n
	}
}

// fetched notes that so many bytes of neighbours were asked for. Old experience fades.
func (a *around) fetched(n int64) {
	a.issued += n
	if a.issued > 4*aroundPrior {
		a.issued /= 2
		a.used /= 2
	}
}

// wanted notes that bytes that came along were read.
func (a *around) wanted(n int64) { a.used = min(a.used+n, a.issued) }

// spread divides a window about chunk bytes [lo, hi) of an image of that size: most of it behind, where reads go
// on, some before.
func spread(lo, hi, window, size int64) (from, to int64) {
	before := window / 4
	return max(lo-before, 0), min(hi+window-before, size)
}
