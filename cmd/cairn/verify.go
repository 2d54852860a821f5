package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/internal/confine"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/store/locate"
)

type verifyFlags struct {
	common
	stores
	trustFlags
	index locate.Location
}

func newVerify() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify INDEX [IMAGE]",
		Short: "Verify an image or partition, or every chunk of an index in the store",
		Long: `verify hashes IMAGE and compares it with INDEX. IMAGE is a file, a device, DISK#NAME, PARTLABEL=NAME, PARTUUID=UUID,
a pipe, or - for stdin. A device may be larger than the image. A file or pipe may have zeros behind the image, like a
copy through NBD. Without IMAGE, verify reads and hashes every chunk of INDEX in the store.

Exit status 3 says that chunks are damaged or missing.`,
		Example: `  cairn verify v2.caibx PARTLABEL=root-b
  cairn verify v2.caibx -s /srv/images/default.castr
  zcat root.img.gz | cairn verify v2.caibx -`,
		Args: checkArgs(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error { return runVerify(c.Context(), c.OutOrStdout(), f, args) },
	}
	f.common.addFlags(c)
	f.stores.addFlags(c)
	f.confinement.addFlags(c)
	f.stores.addPatience(c)
	indexArg(c, &f.index)
	localArg(c, 1, "IMAGE")
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		u.addReader("INDEX", args[0])
		if len(args) > 1 {
			u.addReader("IMAGE", args[1])
		}
	})
	f.trustFlags.addTo(c)
	return c
}

// verifyResult is the output of verify --json.
type verifyResult struct {
	Index  locate.Location `json:"index"`
	Image  string          `json:"image,omitempty"` // empty if the store was verified
	Chunks int             `json:"chunks"`
	verify.Report
	Causes []string `json:"causes,omitempty"`
}

func runVerify(ctx context.Context, stdout io.Writer, f verifyFlags, args []string) error {
	end, _, err := f.confineCalls(false, nil, append(f.stores.locations(f.index), f.index)...)
	if err != nil {
		return err
	}
	defer end()
	x, err := f.openIndex(ctx, &f.index, f.access, readIndex)
	if err != nil {
		return err
	}
	prepareHeap(x.Size())
	r := verifyResult{Index: f.index, Chunks: x.Len()}
	what := "the store"
	if len(args) == 1 {
		r.Report, err = f.verifyStore(ctx, x)
	} else {
		r.Image = args[1]
		if what = args[1]; what == openfile.Dash {
			what = "stdin"
		}
		r.Report, err = f.verifyImage(ctx, what, r.Image, x)
	}
	if err != nil {
		return fmt.Errorf("verifying %s: %w", what, err)
	}
	if f.json {
		r.First = append([]verify.Range{}, r.First...) // an empty list, not null
		for _, cause := range r.Report.Causes {
			r.Causes = append(r.Causes, cause.Error())
		}
		err = writeJSON(stdout, r)
	}
	if r.Bad > 0 {
		logDamage(r.Report)
		return damageError(what, f.index, x, r.Report)
	}
	if !f.json {
		logf("%s is whole: %s in %s", what, plaintext.Size(x.Size()), plaintext.Count(int64(x.Len()), "chunk"))
	}
	return err
}

func (f *verifyFlags) verifyImage(ctx context.Context, name, path string, x *blob.Index) (r verify.Report, err error) {
	image, err := verify.Open(ctx, x, path)
	if err != nil {
		return r, err
	}
	defer image.Close()
	if err := f.confineFiles(confine.Policy{}); err != nil {
		return r, err
	}
	o, end := f.showProgress(name, x)
	defer end()
	o.Workers = f.jobs
	return image.Verify(ctx, o)
}

func (f *verifyFlags) verifyStore(ctx context.Context, x *blob.Index) (verify.Report, error) {
	from, err := f.open(ctx, f.index, x, 0)
	if err != nil {
		return verify.Report{}, err
	}
	defer from.Close()
	if err := f.confineFiles(confine.Policy{Write: makeDirs(0o755, f.cache)}); err != nil {
		return verify.Report{}, err
	}
	var tree error
	o, end := f.showProgress("the store", x)
	o.Workers = max(min(from.Requests(), 16), f.jobs)
	o.Inspect = func(first []byte) { tree = release.RefuseArchive(first) }
	r, err := verify.Store(ctx, x, from, o)
	end()
	if err == nil && tree != nil && release.KindOf(f.index, x) == release.Image { // readIndex noted the other kinds
		logf("note: %s: %v", f.index, tree)
	}
	return r, err
}

// showProgress begins to show the progress of a verification.
func (f *verifyFlags) showProgress(what string, x *blob.Index) (o verify.Options, end func()) {
	p := newProgress(f.progress, "verifying "+what, "", x.Size())
	return verify.Options{Progress: func(r verify.Report) { p.show(r.Done, "", r) }}, p.end
}

// damageError returns the error about a report with bad chunks.
func damageError(what string, index locate.Location, x *blob.Index, r verify.Report) error {
	much := fmt.Sprintf("%d of %s (%s)", r.Bad, plaintext.Count(int64(x.Len()), "chunk"), plaintext.Size(r.BadBytes))
	if len(r.Causes) > 0 {
		return damagedError{fmt.Sprintf("%s does not hold %s whole: %s are missing or damaged", what, index, much)}
	}
	if r.Unfinished {
		much = "it begins with zeros, as an assemble that was not finished leaves it; " + much
	}
	return damagedError{fmt.Sprintf("%s is not the image of %s: %s differ", what, index, much)}
}

// logDamage prints the first causes or ranges of a report with bad chunks.
func logDamage(r verify.Report) {
	for _, cause := range r.Causes {
		logf("%v", cause)
	}
	for _, bad := range r.First {
		if len(r.Causes) == 0 {
			logf("bytes %d to %d differ", bad.Offset, bad.Offset+bad.Size-1)
		}
	}
}
