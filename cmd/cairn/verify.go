package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/store/locate"
)

type verifyFlags struct {
	common
	stores
	index []locate.Location // one
}

func newVerify() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify INDEX [IMAGE]",
		Short: "Check an image or partition, or that the store holds every chunk, whole",
		Long: `verify hashes IMAGE (a file, device, DISK#NAME, PARTLABEL=NAME, PARTUUID=UUID, a pipe, or - for stdin) and compares it
with INDEX; a device may be larger than the image, and a file or pipe may have zeros behind it, as a copy through NBD
has. Without IMAGE it gets every chunk of INDEX from the store and checks it.
Exit status 3 says that something is damaged or missing.`,
		Example: `  cairn verify v2.caibx PARTLABEL=root-b
  cairn verify v2.caibx -s /srv/images/default.castr
  zcat root.img.gz | cairn verify v2.caibx -`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error { return runVerify(c.Context(), c.OutOrStdout(), f, args) },
	}
	f.common.add(c)
	f.stores.add(c)
	f.stores.addPatience(c)
	indexArgs(c, &f.index, 0, 1)
	localArgs(c, 1, "IMAGE")
	checkStdio(c, func(u *users, args []string) {
		u.reads("INDEX", args[0])
		if len(args) > 1 {
			u.reads("IMAGE", args[1])
		}
	})
	return c
}

// verified is what verify --json prints.
type verified struct {
	Index  locate.Location `json:"index"`
	Image  string          `json:"image,omitempty"` // or the store was verified
	Chunks int             `json:"chunks"`
	verify.Report
	Causes []string `json:"causes,omitempty"`
}

func runVerify(ctx context.Context, stdout io.Writer, f verifyFlags, args []string) error {
	x, err := readIndex(ctx, f.index[0], f.access)
	if err != nil {
		return err
	}
	prepareHeap(x.Size())
	what, report, err := f.verify(ctx, x, args)
	if err != nil {
		return fmt.Errorf("verifying %s: %w", what, err)
	}
	if f.json {
		v := verified{Index: f.index[0], Chunks: x.Len(), Report: report}
		v.First = append([]verify.Range{}, v.First...) // a list, also when it is empty
		for _, cause := range report.Causes {
			v.Causes = append(v.Causes, cause.Error())
		}
		if len(args) > 1 {
			v.Image = args[1]
		}
		err = writeJSON(stdout, v)
	}
	if report.Bad > 0 {
		tellBad(report)
		return damaged(what, f.index[0], x, report)
	}
	if !f.json {
		say("%s is whole: %s in %s", what, size(x.Size()), chunks(int64(x.Len())))
	}
	return err
}

// verify checks the store, or an image.
func (f *verifyFlags) verify(ctx context.Context, x *blob.Index, args []string) (what string, r verify.Report, err error) {
	if len(args) == 1 {
		r, err = f.verifyStore(ctx, x)
		return "the store", r, err
	}
	if what = args[1]; what == dash {
		what = "stdin"
	}
	image, err := verify.Open(ctx, x, args[1])
	if err != nil {
		return what, r, err
	}
	defer image.Close()
	o, end := f.show(what, x)
	defer end()
	o.Workers = f.jobs
	r, err = image.Verify(ctx, o)
	return what, r, err
}

// show begins to show how what is verified.
func (f *verifyFlags) show(what string, x *blob.Index) (o verify.Options, end func()) {
	p := newProgress(f.progress, "verifying "+what, x.Size())
	return verify.Options{Progress: func(r verify.Report) { p.show(r.Done, "", r) }}, p.end
}

func (f *verifyFlags) verifyStore(ctx context.Context, x *blob.Index) (verify.Report, error) {
	from, err := openStores(f.stores, f.index[0], x.Algorithm(), 0)
	if err != nil {
		return verify.Report{}, err
	}
	defer from.Close()
	var tree error
	o, end := f.show("the store", x)
	o.Workers = max(min(from.Requests(), 64), f.jobs)
	o.Inspect = func(first []byte) { tree = release.RefuseArchive(first) }
	r, err := verify.Store(ctx, x, from, o)
	end()
	if err == nil && tree != nil && release.KindOf(f.index[0], x) == release.Image { // else it was noted before
		say("note: %s: %v", f.index[0], tree)
	}
	return r, err
}

// damaged says how much is not right.
func damaged(what string, index locate.Location, x *blob.Index, r verify.Report) error {
	much := fmt.Sprintf("%d of %s (%s)", r.Bad, chunks(int64(x.Len())), size(r.BadBytes))
	if len(r.Causes) > 0 {
		return damagedError{fmt.Sprintf("%s does not hold %s whole: %s are missing or damaged", what, index, much)}
	}
	if r.Unfinished {
		much = "it begins with zeros, as an assemble that was not finished leaves it; " + much
	}
	return damagedError{fmt.Sprintf("%s is not the image of %s: %s differ", what, index, much)}
}

// tellBad names the first things that are not right.
func tellBad(r verify.Report) {
	for _, cause := range r.Causes {
		say("%v", cause)
	}
	for _, bad := range r.First {
		if len(r.Causes) == 0 {
			say("bytes %d to %d differ", bad.Offset, bad.Offset+bad.Size-1)
		}
	}
}
