package gcsim

import (
	"fmt"
	"strconv"
	"strings"
)

// variant is a protocol that differs from the real one in one respect. The zero value is the real one.
type variant struct {
	name          string
	hidesLeases   bool   // from collectors
	hidesTurns    bool   // from publishers
	hidesNew      bool   // collectors see only the gc roots that were there at their first look
	looksEarly    bool   // a publisher looks at the store before it has a lease
	indexFirst    bool   // a publisher writes the index before the gc root
	rare          uint64 // it fails in few schedules, such as one soon after this seed; 0 for others
	listsOnce     bool   // a collector takes the gc roots from the listing in which it has looked for leases
	dropsOld      bool   // a renewal removes the object before at once
	withdrawsTurn bool   // a turn is withdrawn while a removal may still be carried out

	hidesPackTurns   bool // from publishers
	looksOnceAtPacks bool // a publisher does not look again whether the packs are there
}

// variants are the protocols that must fail.
var variants = []variant{
	{name: "age only", hidesLeases: true, hidesTurns: true, hidesNew: true},
	{name: "no lease", hidesLeases: true},
	{name: "no turn", hidesTurns: true},
	{name: "lease after the look at the store", looksEarly: true},
	{name: "gc roots listed before the turn only", hidesNew: true},
	{name: "gc root after the index", indexFirst: true},
	{name: "one listing for leases and gc roots", listsOnce: true, rare: 3445},
	{name: "renewal without overlap", dropsOld: true, rare: 53300},
	{name: "no pack turn", hidesPackTurns: true, rare: 7731},
	{name: "packs looked at once", looksOnceAtPacks: true},
	{name: "turn withdrawn during a removal", withdrawsTurn: true, rare: 3500},
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
			strings.HasSuffix(name, rootSuffix) && (v.hidesNew && o.number > a.seen || v.listsOnce && a.looked > 0 && o.number > a.looked)
	case "publisher":
		return v.hidesTurns && strings.HasPrefix(name, "turns/") || v.hidesPackTurns && strings.HasPrefix(name, "packturns/")
	}
	return false
}

// forgetTurns removes the objects of the actor's turns.
func (a *actor) forgetTurns() {
	for name, o := range a.w.objects[recordPlace] {
		if o.from == a && (strings.HasPrefix(name, "turns/") || strings.HasPrefix(name, "packturns/")) {
			a.w.logf("%v withdraws %s", a, name)
			delete(a.w.objects[recordPlace], name)
		}
	}
}

// dropOld removes the object before the current one of a lease or turn, of which a renewal has just seen that it is there.
func (a *actor) dropOld(r *request) {
	if !a.w.variant.dropsOld || r.place != recordPlace || r.verb != stat {
		return
	}
	id, number, _ := strings.Cut(a.canonical(r.place, r.names[0]), ".")
	n, err := strconv.Atoi(number)
	if next := fmt.Sprintf("%s.%d", id, n+1); err == nil && a.w.objects[recordPlace][next] != nil {
		delete(a.w.objects[recordPlace], id+"."+number)
	}
}
