package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/deploy"
	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/seed/learn"
	"cairn/store/locate"
	"cairn/store/supply"
)

// defaultState is the default of --state.
const defaultState = "/var/lib/cairn"

// seedFlags holds the flags of seeds.
type seedFlags struct {
	seeds      []learn.Place
	state      string
	stateGiven bool // print a warning when state cannot be used
	noDelta    bool
}

func (f *seedFlags) addFlags(c *cobra.Command) {
	flags := c.Flags()
	flags.Var(funcFlag{"seed", "", func(text string) error {
		s, err := learn.ParsePlace(text)
		f.seeds = append(f.seeds, s)
		return err
	}}, "seed",
		"`PATH[=INDEX]` of data that may contain wanted chunks: a file, device, DISK#NAME, PARTLABEL=NAME, PARTUUID=UUID, @root "+
			"(the device that / is mounted from) or a directory of images; without INDEX it is scanned; \\= and \\# are = and # "+
			"in a name; repeatable")
	flags.BoolVar(&f.noDelta, "no-delta", false, "fetch every chunk that no seed holds; do not look for deltas beside the stores")
	flags.StringVar(&f.state, "state", defaultState, "`directory` that remembers the content of devices; \"\" for none")
	addCheck(c, func([]string) error {
		f.stateGiven = c.Flags().Changed("state")
		return f.checkSeeds()
	})
}

// addReaders adds the indexes of seeds that are read from stdin.
func (f *seedFlags) addReaders(u *stdioUsers) {
	for _, s := range f.seeds {
		u.addLocation("the index of --seed "+s.Path, s.Index)
	}
}

// locations returns the locations of the seeds' indexes.
func (f *seedFlags) locations() (all []locate.Location) {
	for _, s := range f.seeds {
		all = append(all, s.Index)
	}
	return all
}

// checkSeeds refuses seeds without random access.
func (f *seedFlags) checkSeeds() error {
	for _, s := range f.seeds {
		if s.Path == openfile.Dash {
			return errors.New("--seed -: a seed is read at any place, which stdin does not allow; a file of that name is ./-")
		}
		if info, err := os.Stat(s.Path); err == nil && info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return fmt.Errorf("--seed %s: a seed is read at any place, which a pipe does not allow", s.Path)
		}
	}
	return nil
}

// logSeedNote prints a note about a seed.
func (f *seedFlags) logSeedNote(n learn.Note) {
	switch n := n.(type) {
	case learn.SeedFound:
		logf("seed %s is %s", n.Seed, n.Is)
	case learn.SeedLeftOut:
		logf("warning: seed %s is not used: %v", n.Seed, n.Err)
	case learn.IndexLeftOut:
		logf("warning: seed %s is scanned: %v", n.Seed, n.Err)
	case learn.NotRemembered:
		if f.stateGiven {
			logf("warning: cannot remember what devices hold: %v", n.Err)
		}
	}
}

// deltas returns where a job finds deltas: beside the stores.
func (f *seedFlags) deltas(ctx context.Context, from *supply.Supply) deploy.Deltas {
	if f.noDelta {
		return deploy.Deltas{}
	}
	return deploy.Deltas{
		Dirs: from.Beside(release.DeltaDir), Keep: from.Keep,
		Cached: func(d blob.Digest) bool { return from.IsCached(ctx, d) },
	}
}
