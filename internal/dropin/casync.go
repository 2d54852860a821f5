package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cairn/internal/disk"
)

const (
	trees      = "cairn is for images of block devices, not for directory trees; make a squashfs or erofs image of the tree"
	ofTrees    = "it is about directory trees"
	noGC       = "cairn does not remove chunks yet; the real tool does, also in stores that cairn wrote, or 'cairn store copy' copies what to keep into a new store"
	alwaysDone = "cairn verifies every byte of a seed and of the target before it uses it"
)

// casync is the table of casync.
var casync = tool{
	name: Casync, version: "casync 2", prefixes: true,
	commands: []command{
		{name: "make", args: "[BLOB_INDEX] [PATH]", most: 2, becomes: "`cairn make`", translate: makeLikeCasync},
		{name: "extract", args: "[BLOB_INDEX] [PATH]", most: 3, becomes: "`cairn assemble`", translate: extractLikeCasync},
		{name: "list", args: "[ARCHIVE]", most: 9, instead: trees},
		{name: "mtree", args: "[ARCHIVE]", most: 9, instead: trees},
		{name: "stat", args: "[ARCHIVE] [PATH]", most: 9, instead: trees},
		{name: "digest", args: "[BLOB|BLOB_INDEX]", most: 2, becomes: "prints the digest of a file, a device, or the image of an index", translate: digestLikeCasync},
		{name: "mount", args: "[ARCHIVE] PATH", instead: trees + ", which 'cairn serve' and 'mount' make readable"},
		{name: "mkdev", args: "[BLOB_INDEX] [NODE]", instead: "'cairn serve INDEX' exports the image over NBD, and 'nbd-client -unix SOCKET /dev/nbd0' attaches it"},
		{name: "gc", args: "BLOB_INDEX...", instead: noGC},
		{name: "pull", args: "", instead: "cairn reads stores over sftp://, from web servers and from S3"},
		{name: "push", args: "", instead: "cairn writes stores over sftp://, WebDAV and S3"},
		{name: "udev", args: "", instead: "'cairn serve' needs no rule of udev"},
		{name: "help", becomes: "this list"},
	},
	flags: []flag{
		{name: "store", value: "PATH", on: "make extract digest", becomes: "`--store`; without it `$CASYNC_STORE`, or `default.castr` beside the index", handled: true},
		{name: "extra-store", value: "PATH", many: true, on: "extract", becomes: "a further `--store`, asked after the others", handled: true},
		{name: "seed", value: "PATH", many: true, on: "extract", becomes: "`--seed`", handled: true},
		{name: "seed-output", value: "BOOL", on: "extract", ignored: true, becomes: alwaysDone},
		{name: "chunk-size", value: "[MIN:]AVG[:MAX]", on: "make", becomes: "`--chunk-size`, in bytes", handled: true},
		{name: "digest", value: "DIGEST", on: "make digest", becomes: "`--digest`; an index says by itself which one it has", handled: true},
		{name: "compression", value: "METHOD", on: "make", becomes: "zstd; others are read, but not written", handled: true},
		{name: "rate-limit-bps", value: "BYTES", on: "make extract", becomes: "`--rate-limit`; for `make` into a remote store it is refused", handled: true},
		{name: "cache", value: "PATH", on: "make", refused: true, becomes: "as in casync, it is for directory trees"},
		{name: "cache-auto", short: "c", on: "make", refused: true, becomes: "as in casync, it is for directory trees"},
		{name: "what", value: "KIND", on: "make extract digest", becomes: "`blob-index` only, `blob` for `digest`", handled: true},
		{name: "reflink", value: "BOOL", ignored: true, on: "extract", becomes: "a file shares blocks with seeds where the file system can"},
		{name: "punch-holes", value: "BOOL", ignored: true, on: "extract", becomes: "zeros of a file are holes"},
		{name: "hardlink", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "delete", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "undo-immutable", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "exclude-nodump", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "exclude-submounts", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "exclude-file", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "with", value: "FEATURE", many: true, ignored: true, becomes: ofTrees},
		{name: "without", value: "FEATURE", many: true, ignored: true, becomes: ofTrees},
		{name: "uid-shift", value: "SHIFT", ignored: true, becomes: ofTrees},
		{name: "uid-range", value: "RANGE", ignored: true, becomes: ofTrees},
		{name: "recursive", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "mkdir", value: "BOOL", ignored: true, becomes: ofTrees},
		{name: "dry-run", short: "n", on: "gc", ignored: true, becomes: "it is for gc"},
		{name: "log-level", short: "l", value: "LEVEL", becomes: "debug is `--verbose`", handled: true},
		{name: "verbose", short: "v", becomes: "shows progress, the flags that are ignored, and the command line of cairn", handled: true},
		{name: "version", becomes: "prints casync's and cairn's version", handled: true},
		{name: "help", short: "h", becomes: "prints this list", handled: true},
	},
}

// makeLikeCasync translates casync make.
func makeLikeCasync(l *line) error {
	index, image := stripFileURL(l.arg(0)), stripFileURL(l.arg(1))
	if err := l.checkBlob(index); err != nil {
		return err
	}
	if info, err := os.Stat(image); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: %s", image, trees)
	}
	if len(l.args) > 2 {
		return errors.New("want 'casync make BLOB_INDEX PATH'")
	}
	if method := l.value("compression"); method != "" && method != "zstd" {
		return fmt.Errorf("--compression=%s is not supported: leave it out; cairn writes zstd, which casync and desync read", method)
	}
	if sizes := l.value("chunk-size"); sizes != "" && sizes != "auto" {
		text, err := chunkSizesInBytes(sizes)
		if err != nil {
			return err
		}
		l.add("--chunk-size=" + text)
	}
	if digest := l.value("digest"); digest != "" && digest != "default" {
		l.add("--digest=" + digest)
	}
	store := l.casyncStore(index)
	if l.given("rate-limit-bps") {
		if strings.Contains(store, "://") {
			return errors.New("--rate-limit-bps is not supported for make into a remote store: limit the rate at the network")
		}
		l.note("--rate-limit-bps is ignored: nothing is sent over a network")
	}
	l.add("--store=" + store)
	l.addProgress()
	size := claimedSize(image)
	if size > 0 {
		l.add("--size=filesystem")
	}
	l.run("make", index, plainPath(image))
	if index != "-" && image != "-" {
		l.call.Digest = &Digest{Path: image, Size: size, Algorithm: l.value("digest")}
	}
	return nil
}

// claimedSize returns the size that a file system on a block device has by its superblock, to which casync limits an
// image. It returns 0 for a file, and for what casync does not limit.
func claimedSize(image string) int64 {
	info, err := os.Stat(image)
	if err != nil || info.Mode().Type() != fs.ModeDevice {
		return 0
	}
	f, err := os.Open(image)
	if err != nil {
		return 0
	}
	defer f.Close()
	if kind, size, ok := disk.FilesystemSize(f); ok && kind != "erofs" {
		return size
	}
	return 0
}

// digestLikeCasync translates casync digest.
func digestLikeCasync(l *line) error {
	image := stripFileURL(l.arg(0))
	info, err := os.Stat(image)
	what := l.value("what")
	switch {
	case len(l.args) != 1, err == nil && info.IsDir(), strings.HasSuffix(image, ".caidx"), strings.HasSuffix(image, ".catar"),
		!slices.Contains([]string{"", "blob", "blob-index"}, what):
		return errors.New("digest is of a file, a device, or the index of an image: " + trees)
	case what == "blob-index" || what == "" && strings.HasSuffix(image, ".caibx"):
		l.add("--store=" + l.casyncStore(image))
		l.run("cat", image)
		l.call.Digest = &Digest{} // casync ignores --digest here
		return nil
	case image == "-":
		image = "/dev/stdin"
	}
	l.call.Digest = &Digest{Path: image, Size: claimedSize(image), Algorithm: l.value("digest")}
	return nil
}

// extractLikeCasync translates casync extract.
func extractLikeCasync(l *line) error {
	index, target := stripFileURL(l.arg(0)), stripFileURL(l.arg(1))
	if err := l.checkBlob(index); err != nil {
		return err
	}
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: %s", target, trees)
	}
	if len(l.args) > 2 {
		return fmt.Errorf("a path within the image is not supported: %s", trees)
	}
	for _, seed := range l.values("seed") {
		l.add("--seed=" + l.casyncSeed(stripFileURL(seed)))
	}
	l.add("--store=" + l.casyncStore(index))
	for _, store := range l.values("extra-store") {
		l.add("--store=" + casyncLocation(store))
	}
	if limit := l.value("rate-limit-bps"); limit != "" {
		bytes, err := parseCasyncSize(limit)
		if err != nil || bytes == 0 {
			return fmt.Errorf("--rate-limit-bps=%s is not a size", limit)
		}
		l.add(fmt.Sprintf("--rate-limit=%d", bytes))
	}
	if err := l.addImageSum(index); err != nil {
		return err
	}
	l.addProgress()
	l.run("assemble", index, plainPath(target))
	return nil
}

// addProgress adds the flag for progress, which casync shows with --verbose only.
func (l *line) addProgress() {
	if l.value("log-level") == "debug" || os.Getenv("CASYNC_VERBOSE") == "1" {
		l.call.Verbose = true
	}
	if !l.call.Verbose {
		l.add("--progress=none")
	}
}

// checkBlob refuses an index that is not of an image.
func (l *line) checkBlob(index string) error {
	switch what := l.value("what"); what {
	case "", "blob-index":
	case "help":
		return errors.New("--what: blob-index is the only kind that cairn makes and extracts")
	default:
		return fmt.Errorf("--what=%s is not supported: %s", what, trees)
	}
	for _, suffix := range []string{".catar", ".caidx"} {
		if strings.HasSuffix(index, suffix) {
			return fmt.Errorf("%s is an archive of a directory tree: %s", index, trees)
		}
	}
	return nil
}

// casyncStore returns the store of --store, or casync's default.
func (l *line) casyncStore(index string) string {
	switch store := l.value("store"); {
	case store != "":
		return casyncLocation(store)
	case os.Getenv("CASYNC_STORE") != "":
		return casyncLocation(os.Getenv("CASYNC_STORE"))
	case index == "-":
		return "default.castr"
	case strings.Contains(index, "://"):
		before, _, _ := strings.Cut(index, "?")
		return before[:strings.LastIndex(before, "/")+1] + "default.castr"
	}
	return path.Join(path.Dir(index), "default.castr")
}

// casyncSeed returns cairn's text for a seed. An index with its image beside it stands for the image.
func (l *line) casyncSeed(seed string) string {
	if blob, ok := strings.CutSuffix(seed, ".caibx"); ok {
		if _, err := os.Stat(blob); err == nil {
			return seedPlace(blob, seed)
		}
	}
	return seedPlace(seed, "")
}

// casyncLocation returns cairn's text for the location of a store. A | in it is a character of a name.
func casyncLocation(text string) string {
	return escapeByte(overSFTP(stripFileURL(text)), '|')
}

// sshPath matches a file on a server, as casync and scp write it.
var sshPath = regexp.MustCompile(`^((?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9.-]+):(.*)$`)

// overSFTP returns the SFTP location of HOST:PATH, which casync reaches over ssh, and any other text unchanged.
func overSFTP(text string) string {
	m := sshPath.FindStringSubmatch(text)
	if m == nil || strings.HasPrefix(m[2], "//") {
		return text
	}
	if _, err := os.Stat(text); err == nil {
		return text
	}
	if !strings.HasPrefix(m[2], "/") {
		m[2] = "/~/" + m[2]
	}
	return "sftp://" + m[1] + m[2]
}

var percentByte = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// stripFileURL returns the path of a file:// URL, and any other text unchanged.
func stripFileURL(text string) string {
	rest, is := strings.CutPrefix(text, "file://")
	rest = strings.TrimPrefix(rest, "localhost")
	if !is || !strings.HasPrefix(rest, "/") {
		return text
	}
	return percentByte.ReplaceAllStringFunc(rest, func(code string) string {
		n, _ := strconv.ParseUint(code[1:], 16, 8) // the pattern has two hexadecimal digits
		return string([]byte{byte(n)})
	})
}

// chunkSizesInBytes returns cairn's text for casync's chunk sizes.
func chunkSizesInBytes(text string) (string, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 1 && len(parts) != 3 {
		return "", fmt.Errorf("--chunk-size=%s: want AVG or MIN:AVG:MAX", text)
	}
	for i, part := range parts {
		n, err := parseCasyncSize(part)
		if err != nil {
			return "", fmt.Errorf("--chunk-size=%s: %w", text, err)
		}
		parts[i] = strconv.FormatInt(n, 10) + "B"
	}
	return strings.Join(parts, ":"), nil
}

var sizePart = regexp.MustCompile(`^\s*([0-9]+)(\.[0-9]*)?\s*([EPTGMKB]?)`)

// parseCasyncSize parses a size as casync does: 64000, 64K, 1.5M, or a sum such as "1M 512K".
func parseCasyncSize(text string) (int64, error) {
	const suffixes = "EPTGMKB"
	wrong := fmt.Errorf("%q is not a size", text)
	var total float64
	last := -1
	for rest := text; rest != "" || last < 0; {
		m := sizePart.FindStringSubmatch(rest)
		if m == nil {
			return 0, wrong
		}
		rest = strings.TrimLeft(rest[len(m[0]):], " ")
		n, err := strconv.ParseFloat(m[1]+m[2], 64)
		if m[3] == "" {
			m[3] = "B"
		}
		at := strings.Index(suffixes, m[3])
		if err != nil || at <= last {
			return 0, wrong
		}
		last = at
		for range len(suffixes) - 1 - at {
			n *= 1024
		}
		total += n
	}
	if total >= 1<<62 {
		return 0, wrong
	}
	return int64(total), nil
}

// booleans are the words that casync takes for yes and no.
var booleans = []string{"1", "yes", "y", "true", "t", "on", "0", "no", "n", "false", "f", "off"}
