package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// remote are the commands of desync that have the flags of stores.
const remote = "cache cat chop extract info inspect-chunks list-chunks make prune tar untar mtree mount-index verify-index"

// desync is the table of desync.
var desync = tool{
	name: Desync, version: "desync", lists: true,
	commands: []command{
		{name: "extract", args: "INDEX OUTPUT", least: 2, most: 2, becomes: "`cairn assemble`", translate: extractLikeDesync},
		{name: "make", args: "INDEX FILE", least: 2, most: 2, becomes: "`cairn make`; without a store `cairn make --index-only`", translate: makeLikeDesync},
		{name: "prune", args: "INDEX...", instead: noGC},
		{name: "pull", args: "- - - STORE", instead: "cairn reads stores over sftp://, from web servers and from S3"},
		{name: "chunk-server", instead: "any web server can serve the directory of a store; docs/stores.md has the configuration of nginx"},
		{name: "index-server", instead: "any web server can serve the directory of the indexes; docs/stores.md has the configuration of nginx"},
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
		{name: "store", short: "s", value: "LOCATION", many: true, on: "extract", becomes: "`--store`; without it `default.castr` beside the index", handled: true},
		{name: "store", short: "s", value: "LOCATION", on: "make", becomes: "`--store`", handled: true},
		{name: "cache", short: "c", value: "DIRECTORY", on: "extract", becomes: "`--cache DIRECTORY --cache-limit 0`", handled: true},
		{name: "seed", value: "INDEX[:BLOB]", many: true, on: "extract", becomes: "`--seed BLOB=INDEX`; without BLOB it is INDEX without `.caibx`", handled: true},
		{name: "seed-dir", value: "DIRECTORY", many: true, on: "extract", becomes: "a `--seed` for each index below it that has its blob beside it", handled: true},
		{name: "skip-invalid-seeds", on: "extract", ignored: true, becomes: "wrong bytes of a seed cost a download, and never end the job"},
		{name: "regenerate-invalid-seeds", on: "extract", ignored: true, becomes: "wrong bytes of a seed cost a download, and never end the job"},
		{name: "in-place", short: "k", on: "extract", ignored: true, becomes: "a device is always written in place, and the next run continues an interrupted file"},
		{name: "print-stats", on: "extract make", ignored: true, becomes: "the result is printed on stderr"},
		{name: "chunk-size", short: "m", value: "MIN:AVG:MAX", on: "make", becomes: "`--chunk-size`", handled: true},
		{name: "concurrency", short: "n", value: "NUMBER", on: remote, becomes: "`--fetches` for what reads stores, `--jobs` for `make`", handled: true},
		{name: "ca-cert", value: "FILE", on: remote, to: "--ca-cert"},
		{name: "client-cert", value: "FILE", on: remote, to: "--client-cert"},
		{name: "client-key", value: "FILE", on: remote, to: "--client-key"},
		{name: "trust-insecure", short: "t", on: remote, becomes: "refused for `https`: name the authority with `--ca-cert FILE`", handled: true},
		{name: "cache-repair", short: "r", on: remote, ignored: true, becomes: "a damaged chunk of a cache is always replaced"},
		{name: "error-retry", short: "e", value: "NUMBER", on: remote, becomes: "`--patience`: as long as desync's attempts take together, at least a minute", handled: true},
		{name: "error-retry-base-interval", short: "b", value: "DURATION", on: remote, becomes: "see `--error-retry`", handled: true},
		{name: "config", value: "FILE", becomes: "read: see below", handled: true},
		{name: "digest", value: "DIGEST", becomes: "`--digest` for `make`; an index says by itself which one it has", handled: true},
		{name: "verbose", becomes: "prints the flags that are ignored, and the command line of cairn", handled: true},
		{name: "version", becomes: "prints desync's and cairn's version", handled: true},
		{name: "help", short: "h", becomes: "prints this list", handled: true},
	},
}

// extractLikeDesync translates desync extract.
func extractLikeDesync(l *line) error {
	index, target := l.args[0], l.args[1]
	if index == target && index != "-" {
		return errors.New("the index and the output are the same file")
	}
	for _, seed := range l.values("seed") {
		place, err := desyncSeed(seed)
		if err != nil {
			return err
		}
		l.add("--seed=" + place)
	}
	for _, dir := range l.values("seed-dir") {
		if err := l.addSeedsBelow(dir, index); err != nil {
			return err
		}
	}
	if err := l.addStores("--store", l.values("store")); err != nil {
		return err
	}
	if cache := l.value("cache"); cache != "" {
		if strings.Contains(cache, "://") {
			return errors.New("--cache: a cache is a directory on this machine")
		}
		l.add("--cache="+cache, "--cache-limit=0")
	}
	if err := l.addNumber("concurrency", "--fetches"); err != nil {
		return err
	}
	if err := l.addPatience(); err != nil {
		return err
	}
	l.run("assemble", index, plainPath(target))
	return nil
}

// makeLikeDesync translates desync make.
func makeLikeDesync(l *line) error {
	index, image := l.args[0], l.args[1]
	if sizes := l.value("chunk-size"); sizes != "" {
		if strings.Count(sizes, ":") != 2 {
			return fmt.Errorf("--chunk-size=%s: want MIN:AVG:MAX in KiB", sizes)
		}
		l.add("--chunk-size=" + sizes)
	}
	if digest := l.value("digest"); digest != "" {
		l.add("--digest=" + digest)
	}
	if store := l.value("store"); store != "" {
		if err := l.addStores("--store", []string{escapeByte(store, '|')}); err != nil {
			return err
		}
		if err := l.addPatience(); err != nil {
			return err
		}
	} else {
		l.add("--index-only")
	}
	if err := l.addNumber("concurrency", "--jobs"); err != nil {
		return err
	}
	l.run("make", index, plainPath(image))
	return nil
}

// desyncSeed returns cairn's text for a seed of desync: INDEX:BLOB, or INDEX with its blob beside it. Besides, it accepts
// a device or file without an index, which cairn scans.
func desyncSeed(text string) (string, error) {
	if blob, ok := strings.CutSuffix(text, ".caibx"); ok {
		return seedPlace(blob, text), nil
	}
	if index, blob, ok := strings.Cut(text, ":"); ok {
		return seedPlace(blob, index), nil
	}
	if _, err := os.Stat(text); err == nil {
		return seedPlace(text, ""), nil
	}
	return "", fmt.Errorf("--seed %s: want INDEX.caibx or INDEX:BLOB", text)
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
			l.add("--seed=" + seedPlace(blob, name))
		}
		return nil
	})
}

// addStores adds stores, and refuses those that only desync can read.
func (l *line) addStores(flag string, stores []string) error {
	for _, group := range stores {
		members := strings.Split(group, "|")
		for i, member := range members {
			at, err := desyncLocation(member)
			if err != nil {
				return err
			}
			if l.isOn("trust-insecure") && (strings.HasPrefix(at, "https://") || strings.HasPrefix(at, "s3+https://")) {
				return errors.New("--trust-insecure is not supported: name the authority of the server with --ca-cert FILE")
			}
			members[i] = at
		}
		l.add(flag + "=" + strings.Join(members, "|"))
	}
	return nil
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

// addNumber adds a flag of cairn with the value of a flag that is a number. desync chooses the number itself for -1.
func (l *line) addNumber(flag, to string) error {
	if !l.given(flag) {
		return nil
	}
	n, err := strconv.Atoi(l.value(flag))
	if err != nil {
		return fmt.Errorf("--%s %s: want a number", flag, l.value(flag))
	}
	if n > 0 {
		l.add(fmt.Sprintf("%s=%d", to, min(n, 1024)))
	}
	return nil
}

// addPatience adds the time that the attempts of desync take together, if that is longer than cairn's own patience.
func (l *line) addPatience() error {
	const patience = time.Minute
	attempts, pause := 3, 500*time.Millisecond
	var err error
	if text := l.value("error-retry"); text != "" {
		if attempts, err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("--error-retry %s: want a number", text)
		}
	}
	if text := l.value("error-retry-base-interval"); text != "" {
		if pause, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("--error-retry-base-interval %s: want a duration such as 500ms", text)
		}
	}
	attempts = min(max(attempts, 0), 10000)
	if total := min(pause, time.Hour) * time.Duration(attempts*(attempts+1)/2); total > patience {
		l.add("--patience=" + total.String())
	}
	return nil
}
