package dropin

const (
	trees = "cairn is for images of block devices, not for directory trees; " +
		"make a squashfs or erofs image of the tree"
	ofTrees = "it is about directory trees"
	noGC    = "'cairn repo adopt STORE INDEX...' and then 'cairn repo gc STORE' remove the chunks that no index needs; " +
		"the real tool works on stores that cairn wrote, too"
	alwaysDone = "cairn verifies every byte of a seed and of the target before it uses it"
)

// casync is the table of casync.
var casync = tool{
	name: Casync, version: "casync 2", prefixes: true,
	commands: []command{
		{name: "make", args: "[BLOB_INDEX] [PATH]", most: 2, translate: makeLikeCasync,
			becomes: "`cairn make`"},
		{name: "extract", args: "[BLOB_INDEX] [PATH]", most: 3, translate: extractLikeCasync,
			becomes: "`cairn assemble`"},
		{name: "list", args: "[ARCHIVE]", most: 9, instead: trees},
		{name: "mtree", args: "[ARCHIVE]", most: 9, instead: trees},
		{name: "stat", args: "[ARCHIVE] [PATH]", most: 9, instead: trees},
		{name: "digest", args: "[BLOB|BLOB_INDEX]", most: 2, translate: digestLikeCasync,
			becomes: "prints the digest of a file, a device, or the image of an index"},
		{name: "mount", args: "[ARCHIVE] PATH",
			instead: trees + ", which 'cairn serve' and 'mount' make readable"},
		{name: "mkdev", args: "[BLOB_INDEX] [NODE]",
			instead: "'cairn serve INDEX' exports the image over NBD, and 'nbd-client -unix SOCKET /dev/nbd0' " +
				"attaches it"},
		{name: "gc", args: "BLOB_INDEX...", instead: noGC},
		{name: "pull", args: "", instead: "cairn reads stores over sftp://, from web servers and from S3"},
		{name: "push", args: "", instead: "cairn writes stores over sftp://, WebDAV and S3"},
		{name: "udev", args: "", instead: "'cairn serve' needs no rule of udev"},
		{name: "help", becomes: "this list"},
	},
	flags: []flag{
		{name: "store", value: "PATH", on: "make extract digest", handled: true,
			becomes: "`--store`; without it `$CASYNC_STORE`, or `default.castr` beside the index"},
		{name: "extra-store", value: "PATH", many: true, on: "extract", handled: true,
			becomes: "a further `--store`, asked after the others"},
		{name: "seed", value: "PATH", many: true, on: "extract", becomes: "`--seed`", handled: true},
		{name: "seed-output", value: "BOOL", on: "extract", ignored: true, becomes: alwaysDone},
		{name: "chunk-size", value: "[MIN:]AVG[:MAX]", on: "make", handled: true,
			becomes: "`--chunk-size`, in bytes"},
		{name: "digest", value: "DIGEST", on: "make digest", handled: true,
			becomes: "`--digest`; an index says by itself which one it has"},
		{name: "compression", value: "METHOD", on: "make", handled: true,
			becomes: "zstd; others are read, but not written"},
		{name: "rate-limit-bps", value: "BYTES", on: "make extract", handled: true,
			becomes: "`--rate-limit`; for `make` into a remote store it is refused"},
		{name: "cache", value: "PATH", on: "make", refused: true,
			becomes: "as in casync, it is for directory trees"},
		{name: "cache-auto", short: "c", on: "make", refused: true,
			becomes: "as in casync, it is for directory trees"},
		{name: "what", value: "KIND", on: "make extract digest", handled: true,
			becomes: "`blob-index` only, `blob` for `digest`"},
		{name: "reflink", value: "BOOL", ignored: true, on: "extract",
			becomes: "a file shares blocks with seeds where the file system can"},
		{name: "punch-holes", value: "BOOL", ignored: true, on: "extract",
			becomes: "zeros of a file are holes"},
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
		{name: "verbose", short: "v", handled: true,
			becomes: "shows progress, the flags that are ignored, and the command line of cairn"},
		{name: "version", becomes: "prints casync's and cairn's version", handled: true},
		{name: "help", short: "h", becomes: "prints this list", handled: true},
	},
}
