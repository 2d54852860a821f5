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

// withStores are the commands of desync that have the flags of stores.
const withStores = "cache cat chop extract info inspect-chunks list-chunks make verify-index"

const (
	webServer = "any web server can serve the directory; docs/stores.md has the configuration of nginx"
	wrongSeed = "wrong bytes of a seed cost a download, and never end the job"
)

// desync is the table of desync.
var desync = tool{
	name: Desync, version: "desync", lists: true,
	commands: []command{
		{name: "extract", args: "INDEX OUTPUT", least: 2, most: 2, becomes: "`cairn assemble INDEX OUTPUT`", translate: extractLikeDesync},
		{name: "make", args: "INDEX FILE", least: 2, most: 2, becomes: "`cairn make INDEX FILE`, without a store `cairn make --index-only`", translate: makeLikeDesync},
		{name: "verify-index", args: "INDEX FILE", least: 2, most: 2, becomes: "`cairn verify INDEX FILE`", translate: verifyIndexLikeDesync},
		{name: "cat", args: "INDEX [OUTPUT]", least: 1, most: 2, becomes: "`cairn cat INDEX`", translate: catLikeDesync},
		{name: "cache", args: "INDEX...", least: 1, most: 1 << 20, becomes: "`cairn store copy STORE TARGET INDEX... --no-delta`", translate: cacheLikeDesync},
		{name: "chop", args: "INDEX FILE", least: 2, most: 2, becomes: "`cairn store add STORE INDEX FILE`", translate: chopLikeDesync},
		{name: "verify", becomes: "`cairn store verify STORE`", translate: verifyLikeDesync},
		{name: "info", args: "INDEX", least: 1, most: 1, becomes: "the same output", translate: infoLikeDesync},
		{name: "inspect-chunks", args: "INDEX [OUTPUT]", least: 1, most: 2, becomes: "the same output", translate: inspectLikeDesync},
		{name: "list-chunks", args: "INDEX", least: 1, most: 1, becomes: "the same output", translate: listLikeDesync},
		{name: "chunk", args: "FILE", least: 1, most: 1, becomes: "the same output", translate: chunkLikeDesync},
		{name: "prune", args: "INDEX...", instead: noGC},
		{name: "pull", args: "- - - STORE", instead: "cairn reads stores over sftp://, from web servers and from S3"},
		{name: "chunk-server", instead: webServer},
		{name: "index-server", instead: webServer},
		{name: "mount-index", args: "INDEX DIRECTORY", instead: "'cairn serve INDEX' exports the image over NBD; 'nbdfuse DIRECTORY/FILE URI' makes it a file"},
		{name: "tar", args: "INDEX SOURCE", instead: trees},
		{name: "untar", args: "INDEX TARGET", instead: trees},
		{name: "mtree", args: "INDEX", instead: trees},
		{name: "config", instead: "cairn has no configuration of its own; --config FILE reads desync's"},
		{name: "manpage", args: "DIRECTORY", instead: "'desync help' and 'cairn help' print the help"},
		{name: "completion", args: "SHELL", instead: "'cairn completion' makes the completion of cairn's own commands"},
		{name: "help", args: "[COMMAND]", most: 9, becomes: "this list"},
		{name: "version", becomes: "desync's and cairn's version"},
	},
	flags: []flag{
		{name: "store", short: "s", value: "LOCATION", many: true, on: "extract cat info", becomes: "`--store`; without it `default.castr` beside the index, for `info` none", handled: true},
		{name: "store", short: "s", value: "LOCATION", many: true, on: "cache", becomes: "the store to copy from", handled: true},
		{name: "store", short: "s", value: "LOCATION", on: "make", becomes: "`--store`", handled: true},
		{name: "store", short: "s", value: "LOCATION", on: "chop verify inspect-chunks", becomes: "the store", handled: true},
		{name: "cache", short: "c", value: "DIRECTORY", on: "extract cat info", becomes: "`--cache DIRECTORY --cache-limit 0`", handled: true},
		{name: "cache", short: "c", value: "LOCATION", on: "cache", becomes: "the store to copy into", handled: true},
		{name: "seed", value: "INDEX[:BLOB]", many: true, on: "extract", becomes: "`--seed BLOB=INDEX`; without BLOB it is INDEX without `.caibx`", handled: true},
		{name: "seed", value: "INDEX", many: true, on: "info", becomes: "counts the chunks that the index lists", to: "--seed"},
		{name: "chunks-info", value: "FILE", on: "info", becomes: "counts the stored sizes of inspect-chunks", to: "--chunks-info"},
		{name: "format", short: "f", value: "FORMAT", on: "info", becomes: "plain or json", to: "--format"},
		{name: "seed-dir", value: "DIRECTORY", many: true, on: "extract", becomes: "a `--seed` for each index below it that has its blob beside it", handled: true},
		{name: "skip-invalid-seeds", on: "extract", ignored: true, becomes: wrongSeed},
		{name: "regenerate-invalid-seeds", on: "extract", becomes: "the seeds are scanned, without their indexes", handled: true},
		{name: "in-place", short: "k", on: "extract", ignored: true, becomes: "a device is always written in place, and the next run continues an interrupted file"},
		{name: "print-stats", on: "extract make", ignored: true, becomes: "the result is printed on stderr"},
		{name: "chunk-size", short: "m", value: "MIN:AVG:MAX", on: "make chunk", becomes: "`--chunk-size`", handled: true},
		{name: "offset", short: "o", value: "BYTES", on: "cat", becomes: "`--offset`", to: "--offset"},
		{name: "length", short: "l", value: "BYTES", on: "cat", becomes: "`--length`; 0 is to the end", handled: true},
		{name: "start", short: "S", value: "BYTES", on: "chunk", becomes: "the first byte", to: "--start"},
		{name: "repair", short: "r", on: "verify", becomes: "`--remove-damaged`", handled: true},
		{name: "ignore", value: "INDEX", many: true, on: "chop", to: "--base"},
		{name: "ignore", value: "INDEX", many: true, on: "cache", refused: true, becomes: "leave it out; chunks that the target holds are not copied anyway"},
		{name: "ignore-chunks", value: "FILE", many: true, on: "cache chop", refused: true, becomes: "leave it out; chunks that the target holds are not copied anyway"},
		{name: "concurrency", short: "n", value: "NUMBER", on: withStores + " verify", becomes: "`--fetches` where chunks are read from stores, else `--jobs`", handled: true},
		{name: "ca-cert", value: "FILE", on: withStores, to: "--ca-cert"},
		{name: "client-cert", value: "FILE", on: withStores, to: "--client-cert"},
		{name: "client-key", value: "FILE", on: withStores, to: "--client-key"},
		{name: "trust-insecure", short: "t", on: withStores, becomes: "refused for `https`: name the authority with `--ca-cert FILE`", handled: true},
		{name: "cache-repair", short: "r", on: withStores, ignored: true, becomes: "a damaged chunk of a cache is always replaced"},
		{name: "error-retry", short: "e", value: "NUMBER", on: withStores, becomes: "`--patience`, as long as desync's pauses between the attempts together; a minute if neither is set", handled: true},
		{name: "error-retry-base-interval", short: "b", value: "DURATION", on: withStores, becomes: "see `--error-retry`", handled: true},
		{name: "config", value: "FILE", becomes: "read, as the default `~/.config/desync/config.json` is", handled: true},
		{name: "digest", value: "DIGEST", becomes: "`--digest` for `make`; an index says by itself which one it has", handled: true},
		{name: "verbose", becomes: "prints the flags that are ignored, and the command line of cairn", handled: true},
		{name: "version", becomes: "prints desync's and cairn's version", handled: true},
		{name: "help", short: "h", becomes: "prints this list", handled: true},
	},
}

// extractLikeDesync translates desync extract.
func extractLikeDesync(l *line) error {
	index, target := l.args[0], l.args[1]
	switch {
	case index == target && index != "-":
		return errors.New("the index and the output are the same file")
	case l.isOn("skip-invalid-seeds") && l.isOn("regenerate-invalid-seeds"):
		return errors.New("--skip-invalid-seeds and --regenerate-invalid-seeds exclude each other")
	}
	for _, seed := range l.values("seed") {
		blob, index, err := parseSeed(seed)
		if err != nil {
			return err
		}
		l.addSeed(blob, index)
	}
	for _, dir := range l.values("seed-dir") {
		if err := l.addSeedsBelow(dir, index); err != nil {
			return err
		}
	}
	if err := l.addSources(index); err != nil {
		return err
	}
	if err := l.addImageSum(index); err != nil {
		return err
	}
	l.addPercent()
	l.run("assemble", index, plainPath(target))
	return nil
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

// addAccess adds the flags of a command that uses stores: how many requests or workers, how long it waits for a store,
// and what the configuration says about the locations. A command that only reads an index has no flag for the first two,
// and concurrency is empty.
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

// addPatience adds the time that the attempts of desync take together, if the command line or the configuration sets it.
// The pause before attempt n is n times as long as the first one.
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
	l.add("--patience=" + max(pause*time.Duration(attempts*(attempts+1)/2), time.Second).String())
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

// catLikeDesync translates desync cat. cairn writes a whole image to a file as assemble does, which gives a file its name
// when it is complete.
func catLikeDesync(l *line) error {
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
	case length == "" && !l.given("offset"):
		l.run("assemble", l.args[0], plainPath(l.args[1]))
	default:
		l.call.Output = l.args[1]
		l.run("cat", l.args[0])
	}
	return nil
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
	if err := l.addAccess("--fetches", append(slices.Concat(from, []string{target}), dirsOf(l.args...)...)...); err != nil {
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
			dirs = append(dirs, index[:strings.LastIndex(index, "/")])
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

// addSeed adds a seed. Indexes that may be wrong are left out.
func (l *line) addSeed(blob, index string) {
	if l.isOn("regenerate-invalid-seeds") {
		index = ""
	}
	l.add("--seed=" + seedPlace(blob, index))
}

// addSeedsBelow adds the indexes below a directory that have their blobs beside them. The wanted index is none of them.
func (l *line) addSeedsBelow(dir, wanted string) error {
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
			l.addSeed(blob, name)
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
		return "", errors.New("gs:// is not supported: write s3+https://storage.googleapis.com/BUCKET/PREFIX, with HMAC keys")
	case "oci+https", "oci+http":
		return "", errors.New("registries of containers are not supported: copy the chunks into a directory, onto a web server or into S3")
	}
	return text, nil
}
