package main

// The measured figures. They are of two Debian releases as ext4 of 1 GiB; docs/benchmarks.md has them too. Each comment
// names the command that measures the figures below it.

// What a device with release a downloads for release b. The index is among the requests.
var (
	// CAIRN_LONG=1 CAIRN_IMAGES=~/images go test -run Update -timeout 1h ./internal/test/e2e
	// The index has 104 bytes, and 40 for each of 8,262 chunks.
	byChunks = download{requests: 2803 + 1, bytes: 86_334_148 + indexSize}

	// CAIRN_LONG=1 go test -v -run TestPacksOfDebian ./internal/test/e2e
	byPacks      = download{requests: 611 + 1, bytes: 86_418_053 + indexSize} // of 4 MiB, from a server with ranges
	byWholePacks = download{requests: 22 + 1, bytes: 86_519_864 + indexSize}

	// make bench-delta has the bytes, make bench-update the requests.
	byDelta = download{requests: 183, bytes: 34_340_000}
)

// What a device without any release downloads for b; the same commands.
var (
	allByChunks     = download{requests: 5723 + 1, bytes: 158_078_926 + indexSize}
	allByPacks      = download{requests: 1300 + 1, bytes: 159_852_503 + indexSize}
	allByWholePacks = download{requests: 56 + 1, bytes: 224_633_608 + indexSize}
)

const indexSize = 104 + 40*8262

// headerSize is what an answer takes on the link besides its body. make bench-update: 88.0 MB in 2,800 answers of chunks.
const headerSize = (88_000_000 - 86_334_148 - indexSize) / 2800

// What the store holds.
const (
	// CAIRN_IMAGES=~/images go test -v -run TestPublishIntoS3 ./internal/test/e2e
	firstChunks, newChunks = 5691, 2803
	putsOfChunks           = newChunks + 1

	// CAIRN_LONG=1 go test -v -run TestPacksOfDebian ./internal/test/e2e
	firstPacks, newPacks = 39, 21
	firstBytes, newBytes = 158_989_589, 86_334_148 // of chunks
)

// A boot of the recorded trace, from a server with an empty cache, over 20 ms and 100 Mbit/s. Headers are among the bytes.
var boots = []boot{
	// go test -v -run 'TestBoot$' ./blob/view
	{"chunks, on demand", 1, 1072, 26.7 * mebi},
	{"chunks, on demand, 20 machines read from one `cairn serve`", 20, 1033, 25.7 * mebi},
	{"chunks, with the last release's profile", 1, 922, 22.1 * mebi},
	{"chunks, with its profile", 1, 637, 16.5 * mebi},
	// go test -v -run TestBootFromPacks ./blob/view
	{"packs, with its profile", 1, 82, 16.6 * mebi},
	{"packs, with its profile, from a server without ranges", 1, 5, 16.6 * mebi},
}
