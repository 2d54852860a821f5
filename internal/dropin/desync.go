package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// extractLikeDesync translates desync extract.
func extractLikeDesync(l *line) error {
	index, target := l.args[0], l.args[1]
	if err := refuseSameFile(index, target); err != nil {
		return err
	}
	if l.isOn("skip-invalid-seeds") && l.isOn("regenerate-invalid-seeds") {
		return errors.New("--skip-invalid-seeds and --regenerate-invalid-seeds exclude each other")
	}
	for _, seed := range l.values("seed") {
		blob, index, err := parseSeed(seed)
		if err != nil {
			return err
		}
		l.addDesyncSeed(blob, index, target)
	}
	for _, dir := range l.values("seed-dir") {
		if err := l.addSeedsBelow(dir, index, target); err != nil {
			return fmt.Errorf("looking for seeds below --seed-dir %s: %w", dir, err)
		}
	}
	l.addSlotSeeds(index, target)
	if err := l.addSources(index); err != nil {
		return err
	}
	if err := l.addImageSum(index); err != nil {
		return err
	}
	l.addPercent()
	l.addStats()
	l.run("assemble", index, plainPath(target))
	return nil
}

// addStats adds the flag for desync's statistics.
func (l *line) addStats() {
	if l.isOn("print-stats") {
		l.add("--desync-stats")
	}
}

// addSources adds the flags of a command that reads chunks: stores, cache, and how they are read.
func (l *line) addSources(indexes ...string) error {
	stores, err := l.stores("store")
	if err != nil {
		return err
	}
	for _, group := range stores {
		l.add("--store=" + strings.Join(group, "|"))
	}
	if cache := l.value("cache"); cache != "" {
		if strings.Contains(cache, "://") {
			return errors.New("--cache: a cache is a directory on this machine")
		}
		l.add("--cache="+cache, "--cache-limit=0")
	}
	return l.addAccess("--fetches", append(slices.Concat(stores...), dirsOf(indexes...)...)...)
}

// addAccess adds the flags of a command that uses stores: how many requests or workers, how long it waits for a
// store, and what the configuration says about the locations. A command that only reads an index has no flag for the
// first two, and concurrency is empty.
func (l *line) addAccess(concurrency string, locations ...string) error {
	if l.isOn("trust-insecure") {
		for _, at := range locations {
			if err := refuseInsecure(at); err != nil {
				return err
			}
		}
	}
	if text := l.value("concurrency"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--concurrency %s: want a number", text)
		}
		if n > 0 && concurrency != "" { // desync chooses the number itself for -1
			l.add(fmt.Sprintf("%s=%d", concurrency, min(n, 1024)))
		}
	}
	if text := l.value("error-retry"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--error-retry %s: want a number", text)
		}
		l.attempts = &n
	}
	if text := l.value("error-retry-base-interval"); text != "" {
		pause, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("--error-retry-base-interval %s: want a duration such as 500ms", text)
		}
		l.pause = &pause
	}
	if err := l.applyConfig(locations...); err != nil {
		return err
	}
	if concurrency != "" {
		l.addPatience()
	}
	return nil
}

// addPatience adds the time of all pauses of desync between its attempts, if the command line or the configuration
// sets their number or length. Pause n is n times as long as the first one.
func (l *line) addPatience() {
	if l.attempts == nil && l.pause == nil {
		return
	}
	attempts, pause := 3, 500*time.Millisecond
	if l.attempts != nil {
		attempts = min(max(*l.attempts, 0), 10000)
	}
	if l.pause != nil {
		pause = min(max(*l.pause, 0), time.Hour)
	}
	const longest = 10000 * time.Hour
	patience, pauses := longest, time.Duration(attempts*(attempts+1)/2)
	if pauses == 0 || pause < longest/pauses {
		patience = max(pause*pauses, time.Second)
	}
	l.add("--patience=" + patience.String())
}

// addPercent adds the flag for the progress lines that the environment asks for.
func (l *line) addPercent() {
	if os.Getenv("DESYNC_ENABLE_PARSABLE_PROGRESS") != "" {
		l.add("--progress=percent")
	}
}

// makeLikeDesync translates desync make.
func makeLikeDesync(l *line) error {
	index, image := l.args[0], l.args[1]
	if err := refuseSameFile(index, image); err != nil {
		return err
	}
	if err := l.addCutting(); err != nil {
		return err
	}
	at := dirsOf(index)
	if store := l.value("store"); store != "" {
		store, err := desyncLocation(store)
		if err != nil {
			return err
		}
		l.add("--store=" + escapeByte(store, '|'))
		at = append(at, store)
	} else {
		l.add("--index-only")
	}
	if err := l.addAccess("--jobs", at...); err != nil {
		return err
	}
	if l.uncompressed {
		l.add("--compression=none")
	}
	l.addPercent()
	l.addStats()
	l.run("make", index, plainPath(image))
	return nil
}

// addCutting adds how a file is cut and hashed.
func (l *line) addCutting() error {
	if sizes := l.value("chunk-size"); sizes != "" {
		if strings.Count(sizes, ":") != 2 {
			return fmt.Errorf("--chunk-size=%s: want MIN:AVG:MAX in KiB", sizes)
		}
		l.add("--chunk-size=" + sizes)
	}
	if digest := l.value("digest"); digest != "" {
		l.add("--digest=" + digest)
	}
	return nil
}

// verifyIndexLikeDesync translates desync verify-index.
func verifyIndexLikeDesync(l *line) error {
	if err := l.addAccess("--jobs", dirsOf(l.args[0])...); err != nil {
		return err
	}
	l.addPercent()
	l.run("verify", l.args[0], plainPath(l.args[1]))
	return nil
}

// catLikeDesync translates desync cat. A whole image is assembled onto a file, which gets its name when it is
// complete.
func catLikeDesync(l *line) error {
	if err := refuseSameFile(l.args[0], l.arg(1)); err != nil {
		return err
	}
	if err := l.addSources(l.args[0]); err != nil {
		return err
	}
	length := l.value("length")
	if length == "0" {
		length = ""
	}
	if length != "" {
		l.add("--length=" + length)
	}
	switch {
	case len(l.args) == 1 || l.args[1] == "-":
		l.run("cat", l.args[0])
	case length == "" && !l.given("offset") && !isCharDevice(l.args[1]):
		l.run("assemble", l.args[0], plainPath(l.args[1]))
	default:
		l.call.Output = l.args[1]
		l.run("cat", l.args[0])
	}
	return nil
}

// isCharDevice reports whether a path leads to a character device, such as /dev/null.
func isCharDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// cacheLikeDesync translates desync cache.
func cacheLikeDesync(l *line) error {
	stores, err := l.stores("store")
	if err != nil {
		return err
	}
	target, err := desyncLocation(l.value("cache"))
	if err != nil {
		return err
	}
	if len(stores) == 0 || target == "" {
		return errors.New("want 'desync cache -s STORE -c TARGET INDEX...'")
	}
	from := slices.Concat(stores...)
	used := slices.Concat(from, []string{target}, dirsOf(l.args...))
	if err := l.addAccess("--fetches", used...); err != nil {
		return err
	}
	if l.uncompressed {
		l.add("--compression=none")
	}
	l.add("--no-delta") // the target of desync cache has chunks only
	l.addPercent()
	l.run("store copy", slices.Concat([]string{strings.Join(from, "|"), escapeByte(target, '|')}, l.args)...)
	return nil
}

// chopLikeDesync translates desync chop.
func chopLikeDesync(l *line) error {
	store, err := desyncLocation(l.value("store"))
	if err != nil {
		return err
	}
	if store == "" {
		return errors.New("want 'desync chop -s STORE INDEX FILE'")
	}
	if err := l.addAccess("--jobs", append(dirsOf(l.args[0]), store)...); err != nil {
		return err
	}
	if l.uncompressed {
		l.add("--compression=none")
	}
	l.addPercent()
	l.run("store add", escapeByte(store, '|'), l.args[0], plainPath(l.args[1]))
	return nil
}

// verifyLikeDesync translates desync verify.
func verifyLikeDesync(l *line) error {
	store := l.value("store")
	if store == "" {
		return errors.New("want 'desync verify -s STORE'")
	}
	if l.isOn("repair") {
		l.add("--remove-damaged")
		l.call.Mended = true
	}
	l.add("--state=") // desync begins at the first chunk
	if err := l.addAccess("--jobs", store); err != nil {
		return err
	}
	l.call.Stderr = true // desync reports damage there
	l.run("store verify", escapeByte(store, '|'))
	return nil
}

// infoLikeDesync translates desync info.
func infoLikeDesync(l *line) error {
	if err := l.addSources(append(l.args, l.values("seed")...)...); err != nil {
		return err
	}
	l.run("desync-info", l.args[0])
	return nil
}

// inspectLikeDesync translates desync inspect-chunks. Chunks of a plain store have no size of their own.
func inspectLikeDesync(l *line) error {
	if err := refuseSameFile(l.args[0], l.arg(1)); err != nil {
		return err
	}
	at, store := dirsOf(l.args[0]), l.value("store")
	if store != "" {
		at = append(at, store)
	}
	if err := l.addAccess("--fetches", at...); err != nil {
		return err
	}
	if store != "" && !l.uncompressed {
		l.add("--store=" + escapeByte(store, '|'))
	}
	l.run("desync-inspect-chunks", l.args...)
	return nil
}

// listLikeDesync translates desync list-chunks.
func listLikeDesync(l *line) error {
	if err := l.addAccess("", dirsOf(l.args[0])...); err != nil {
		return err
	}
	l.run("desync-list-chunks", l.args[0])
	return nil
}

// chunkLikeDesync translates desync chunk.
func chunkLikeDesync(l *line) error {
	if err := l.addCutting(); err != nil {
		return err
	}
	l.run("desync-chunk", plainPath(l.args[0]))
	return nil
}

// stores returns the locations of the stores of a flag. Those of a group have the same content.
func (l *line) stores(flag string) (groups [][]string, err error) {
	for _, text := range l.values(flag) {
		group := strings.Split(text, "|")
		for i := range group {
			if group[i], err = desyncLocation(group[i]); err != nil {
				return nil, err
			}
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// dirsOf returns the directories of indexes on servers, whose options the configuration may have.
func dirsOf(indexes ...string) (dirs []string) {
	for _, index := range indexes {
		if strings.Contains(index, "://") {
			before, _, _ := strings.Cut(index, "?")
			dirs = append(dirs, before[:strings.LastIndex(before, "/")])
		}
	}
	return dirs
}

// parseSeed parses a seed of desync: INDEX:BLOB, or INDEX with its blob beside it. Besides, it accepts a device or file
// without an index, which cairn scans.
func parseSeed(text string) (blob, index string, err error) {
	if blob, ok := strings.CutSuffix(text, ".caibx"); ok {
		return blob, text, nil
	}
	if index, blob, ok := strings.Cut(text, ":"); ok {
		blob, _, _ = strings.Cut(blob, ":") // desync ignores options behind a second colon
		return blob, index, nil
	}
	if _, err := os.Stat(text); err == nil {
		return text, "", nil
	}
	return "", "", fmt.Errorf("--seed %s: want INDEX.caibx or INDEX:BLOB", text)
}

// addDesyncSeed adds a seed. Indexes that may be wrong are left out.
func (l *line) addDesyncSeed(blob, index, target string) {
	if l.isOn("regenerate-invalid-seeds") {
		index = ""
	}
	l.addSeed(blob, index, target)
}

// addSeedsBelow adds the indexes below a directory that have their blobs beside them. The wanted index is none of them.
func (l *line) addSeedsBelow(dir, wanted, target string) error {
	wanted, err := filepath.Abs(wanted)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".caibx" {
			return err
		}
		if abs, err := filepath.Abs(name); err != nil || abs == wanted {
			return err
		}
		blob := strings.TrimSuffix(name, ".caibx")
		if _, err := os.Stat(blob); err == nil {
			l.addDesyncSeed(blob, name, target)
		}
		return nil
	})
}

// desyncLocation returns cairn's text for the location of a store.
func desyncLocation(text string) (string, error) {
	switch scheme, rest, _ := strings.Cut(text, "://"); scheme {
	case "ssh":
		return "sftp://" + rest, nil
	case "gs":
		return "", errors.New("gs:// is not supported: " +
			"write s3+https://storage.googleapis.com/BUCKET/PREFIX, with HMAC keys")
	case "oci+https", "oci+http":
		return "", errors.New("registries of containers are not supported: " +
			"copy the chunks into a directory, onto a web server or into S3")
	}
	return text, nil
}
