package main

import "time"

const (
	mebi = 1 << 20
	giga = 1e9
	tera = 1e12
)

// Assumptions.
const (
	releases   = 20   // a year
	deltaShare = 0.95 // of devices have one of the last three releases, and download a delta
	deltasKept = 3    // to the newest release, each of the size of the measured one
	kept       = 10   // releases in the store
	caches     = 20   // of the CDN, that fetch each new object once
)

var fleets = []fleet{{"10³", 1e3}, {"10⁶", 1e6}, {"10⁸", 1e8}}

// fleet is a number of devices that all take each release.
type fleet struct {
	name    string
	devices float64
}

// download is what one machine downloads.
type download struct {
	requests float64
	bytes    float64 // of the bodies of the answers
}

// sent returns the bytes on the link.
func (d download) sent() float64 { return d.bytes + d.requests*headerSize }

// mix returns the mean download of devices of which a share downloads d.
func (d download) mix(share float64, others download) download {
	return download{
		d.requests*share + others.requests*(1-share),
		d.bytes*share + others.bytes*(1-share),
	}
}

// layout is a way to publish releases.
type layout struct {
	name    string
	update  download
	objects float64 // of a release, that the CDN fetches
	puts    float64 // of a release
	deltas  float64 // in the store
}

const (
	putsOfDeltas = 2*deltasKept + 2 // each delta with a copy of its old index, the new index, the list
	putsOfPacks  = newPacks + 3     // the map, the index, the gc root
)

var layouts = []layout{
	{"chunks", byChunks, newChunks, putsOfChunks, 0},
	{"packs", byPacks, newPacks, putsOfPacks, 0},
	{"packs, no ranges", byWholePacks, newPacks, putsOfPacks, 0},
	{"deltas, else chunks", byDelta.mix(deltaShare, byChunks), newChunks, putsOfChunks + putsOfDeltas, deltasKept},
	{"deltas, else packs", byDelta.mix(deltaShare, byPacks), newPacks, putsOfPacks + putsOfDeltas, deltasKept},
}

// year is what the updates of a fleet take in a year.
type year struct {
	requests, sent float64
	cdn, direct    float64 // dollars: from S3 through the CDN, and from S3 alone
}

func (l layout) year(f fleet) year {
	updates := releases * f.devices
	y := year{requests: updates * l.update.requests, sent: updates * l.update.sent()}
	own := releases*l.puts*s3Put + storageYear(storedBytes(kept, l.deltas))
	month := y.sent / 12
	y.cdn = own + y.requests*cdnRequests + 12*egressPrice(cdnEgress, month) + releases*caches*l.objects*s3Get
	y.direct = own + y.requests*s3Get + 12*egressPrice(s3Egress, month)
	return y
}

// storedBytes returns the bytes of the chunks of the last n releases, and of some deltas.
func storedBytes(n, deltas float64) float64 {
	return firstBytes + (n-1)*newBytes + deltas*byDelta.bytes
}

// storageYear returns the price of bytes in S3 for a year.
func storageYear(bytes float64) float64 { return 12 * bytes / giga * s3Storage }

// shortest returns the least time in which a server sends so much.
func (s server) shortest(requests, sent float64) time.Duration {
	return time.Duration(max(requests/s.requests, sent*8/s.bits) * float64(time.Second))
}

// boot is what a server downloads while some virtual machines boot from it.
type boot struct {
	name     string
	machines float64
	requests float64
	bytes    float64
}
