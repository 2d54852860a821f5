package gcsim

import (
	"fmt"
	"strings"
)

// variant is a protocol that differs from the real one in one respect. The zero value is the real one.
type variant struct {
	name         string
	hidesLeases  bool // from collectors
	hidesTurns   bool // from publishers
	hidesNew     bool // collectors see only the gc roots that were there at their first look
	looksEarly   bool // a publisher looks at the store before it has a lease
	indexFirst   bool // a publisher writes the index before the gc root
	rewritesName bool // a renewal writes an object of the same name again
}

// isHidden reports whether the actor does not see an object in listings.
func (a *actor) isHidden(p place, name string, o *object) bool {
	v := a.w.variant
	if p != recordPlace || o.from == a {
		return false
	}
	switch a.kind {
	case "collector":
		if a.seen == 0 {
			a.seen = a.w.written
		}
		return v.hidesLeases && strings.HasPrefix(name, "leases/") ||
			v.hidesNew && strings.HasSuffix(name, rootSuffix) && o.number > a.seen
	case "publisher":
		return v.hidesTurns && strings.HasPrefix(name, "turns/")
	}
	return false
}

// rename returns the name of the object that stands for an object.
func (a *actor) rename(p place, name string) string {
	if a.w.variant.rewritesName && p == recordPlace && strings.HasPrefix(name, "leases/") {
		name = name[:strings.IndexByte(name, '.')] + ".0"
	}
	return name
}

// isIgnored reports whether a request is not carried out, because it removes what a renewal has written again.
func (a *actor) isIgnored(r *request) bool {
	if !a.w.variant.rewritesName || r.place != recordPlace || !strings.HasPrefix(r.names[0], "leases/") {
		return false
	}
	var number int
	id, text, _ := strings.Cut(r.names[0], ".")
	_, _ = fmt.Sscan(text, &number)
	if r.verb == write {
		if a.highest == nil {
			a.highest = map[string]int{}
		}
		a.highest[id] = max(a.highest[id], number)
	}
	return r.verb == remove && number < a.highest[id]
}
