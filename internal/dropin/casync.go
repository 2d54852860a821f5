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

// makeLikeCasync translates casync make.
func makeLikeCasync(l *line) error {
	index, image := stripFileURL(l.arg(0)), stripFileURL(l.arg(1))
	if err := l.checkBlob(index); err != nil {
		return err
	}
	if index != "-" && l.value("what") == "" && !strings.HasSuffix(index, ".caibx") { // an image in the place of an index
		return fmt.Errorf("%s does not end in .caibx: name the index first, or give --what=blob-index", index)
	}
	if info, err := os.Stat(image); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a directory: %s", image, trees)
	}
	if len(l.args) > 2 {
		return errors.New("want 'casync make BLOB_INDEX PATH'")
	}
	if err := refuseSameFile(index, image); err != nil {
		return err
	}
	if method := l.value("compression"); method != "" && method != "zstd" {
		return fmt.Errorf("--compression=%s is not supported: leave it out; cairn writes zstd, which casync and desync read",
			method)
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
			return errors.New("--rate-limit-bps is not supported for make into a remote store: " +
				"limit the rate in the network")
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
	if index != "-" && image != "-" && !isStream(image) {
		l.call.Digest = &Digest{Path: image, Size: size, Algorithm: l.value("digest")}
	}
	return nil
}

// isStream reports whether a path leads to something that can be read once only.
func isStream(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeDevice
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
	case len(l.args) != 1, err == nil && info.IsDir(),
		strings.HasSuffix(image, ".caidx"), strings.HasSuffix(image, ".catar"),
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
	if err := refuseSameFile(index, target); err != nil {
		return err
	}
	for _, seed := range l.values("seed") {
		path, index := casyncSeed(stripFileURL(seed))
		l.addSeed(path, index, target)
	}
	l.addCasyncStores(index)
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

// addCasyncStores adds the stores of extract. Of several, those that are directories and do not exist are left out, as
// casync does.
func (l *line) addCasyncStores(index string) {
	all := []string{l.casyncStore(index)}
	for _, store := range l.values("extra-store") {
		all = append(all, casyncLocation(store))
	}
	isAbsent := func(store string) bool {
		_, err := os.Stat(store)
		return !strings.Contains(store, "://") && errors.Is(err, fs.ErrNotExist)
	}
	if slices.ContainsFunc(all, func(store string) bool { return !isAbsent(store) }) {
		all = slices.DeleteFunc(all, func(store string) bool {
			if !isAbsent(store) {
				return false
			}
			l.note("the store %s is ignored: it does not exist", store)
			return true
		})
	}
	for _, store := range all {
		l.add("--store=" + store)
	}
}

// casyncSeed returns the path and the index of a seed. An index with its image beside it stands for the image.
func casyncSeed(seed string) (path, index string) {
	if blob, ok := strings.CutSuffix(seed, ".caibx"); ok {
		if _, err := os.Stat(blob); err == nil {
			return blob, seed
		}
	}
	return seed, ""
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
