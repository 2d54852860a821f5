package main

import (
	"strings"
	"time"

	"cairn/blob/deploy"
	"cairn/blob/release"
	"cairn/blob/scan"
)

// defaultState is where is remembered what devices hold, unless --state says otherwise.
const defaultState = "/var/lib/cairn"

// tell puts a note of a job into words.
func (f *planFlags) tell(n deploy.Note) {
	switch n := n.(type) {
	case deploy.Waiting:
		say("%s", n.Text)
	case deploy.SeedFound:
		say("seed %s is %s", n.Seed, n.Is)
	case deploy.SeedLeftOut:
		say("warning: seed %s is not used: %v", n.Seed, n.Err)
	case deploy.IndexLeftOut:
		say("warning: seed %s is looked into: %v", n.Seed, n.Err)
	case deploy.NotRemembered:
		if f.stated {
			say("warning: cannot remember what devices hold: %v", n.Err)
		}
	case deploy.Unfinished:
		say("an assemble of %s onto %s, begun %s, was not finished; going on with what is there",
			n.Index, n.Target, n.Begun.Format(time.DateTime))
	case release.AttributesLost:
		tellLost(n.Path, n.Err)
	case deploy.OldPartitions:
		say("warning: the kernel goes on with the old partitions of %s until 'blockdev --rereadpt %s' or a restart: %v",
			n.Target, n.Path, n.Err)
	case deploy.Sampled: // what is scanned is shown when it begins
	}
}

// tellLost tells what a file has lost that replaces another.
func tellLost(name string, lost error) {
	say("warning: %s could not be given all that the file had that it replaces: %s", name, strings.ReplaceAll(lost.Error(), "\n", "; "))
}

// showScan shows how a seed or target is scanned.
func (f *common) showScan(name string, size int64) (func(scan.Stats), func()) {
	p := newProgress(f.progress, "scanning "+name, size)
	return func(s scan.Stats) { p.show(s.Size, "", s) }, p.end
}
