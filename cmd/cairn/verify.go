package main

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/verify"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
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
		Long: `verify hashes IMAGE (a file, device, DISK#NAME, PARTLABEL=NAME or PARTUUID=UUID) and compares it with INDEX; a
device may be larger than the image, and a file may have zeros behind it, as a copy through NBD has. Without IMAGE it
gets every chunk of INDEX from the store and checks it.
Exit status 3 says that something is damaged or missing.`,
		Example: `  cairn verify v2.caibx PARTLABEL=root-b
  cairn verify v2.caibx -s /srv/images/default.castr`,
		Args: arguments(cobra.RangeArgs(1, 2)),
		RunE: func(c *cobra.Command, args []string) error { return runVerify(c.Context(), c.OutOrStdout(), f, args) },
	}
	f.common.add(c)
	f.stores.add(c)
	f.stores.addPatience(c)
	indexArgs(c, &f.index, 0, 1)
	localArgs(c, 1, "IMAGE")
	return c
}

// verified is what verify --json prints.
type verified struct {
	Index  locate.Location `json:"index"`
	Image  string          `json:"image,omitempty"` // or the store was verified
	Chunks int             `json:"chunks"`
	verify.Report
	Unfinished bool     `json:"unfinished,omitempty"` // the image begins as an interrupted assemble leaves it
	Causes     []string `json:"causes,omitempty"`
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
	unfinished := len(args) > 1 && report.Bad > 0 && isUnfinished(ctx, args[1], x.Size())
	if f.json {
		v := verified{Index: f.index[0], Chunks: x.Len(), Report: report, Unfinished: unfinished}
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
		return damaged(what, f.index[0], x, report, unfinished)
	}
	if !f.json {
		say("%s is whole: %s in %s", what, size(x.Size()), chunks(int64(x.Len())))
	}
	return err
}

func (f *verifyFlags) verify(ctx context.Context, x *blob.Index, args []string) (string, verify.Report, error) {
	o := verify.Options{Workers: f.jobs}
	if len(args) == 1 {
		from, err := openStores(f.stores, f.index[0], x.Algorithm(), 0)
		if err != nil {
			return "the store", verify.Report{}, err
		}
		defer from.close()
		from.noteArchive(ctx, f.index[0], x)
		o.Workers = max(min(from.fetches, 64), f.jobs)
		return f.report("the store", x, o, func(o verify.Options) (verify.Report, error) {
			return verify.Store(ctx, x, from.chunks, o)
		})
	}
	image, err := openWhole(ctx, args[1], x.Size())
	if err != nil {
		return args[1], verify.Report{}, err
	}
	defer image.Close()
	return f.report(args[1], x, o, func(o verify.Options) (verify.Report, error) {
		return verify.Image(ctx, x, image, o)
	})
}

// openWhole opens what should hold an image of want bytes. A partition or device may hold more, a file zeros: a copy through
// NBD or from a device has whole sectors.
func openWhole(ctx context.Context, location string, want int64) (*blockdev.File, error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	f, err := blockdev.OpenRead(at.Path, at.Section)
	if err != nil {
		return nil, err
	}
	if f.Size() < want {
		err = damagedError{fmt.Sprintf("it has %d bytes, the image %d", f.Size(), want)}
	} else if !f.IsDevice() && at.Partition == nil {
		err = endsWithZeros(ctx, f, want)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// endsWithZeros says what is wrong with a file that has something else than zeros behind an image of want bytes.
func endsWithZeros(ctx context.Context, f *blockdev.File, want int64) error {
	zeros, err := verify.Zeros(ctx, f, want, f.Size())
	if err == nil && !zeros {
		err = damagedError{fmt.Sprintf("it has %d bytes, the image %d, and more than zeros behind it", f.Size(), want)}
	}
	return err
}

func (f *verifyFlags) report(what string, x *blob.Index, o verify.Options, do func(verify.Options) (verify.Report, error)) (string, verify.Report, error) {
	p := newProgress(f.progress, "verifying "+what, x.Size())
	o.Progress = func(r verify.Report) { p.show(r.Done, "", r) }
	defer p.end()
	r, err := do(o)
	return what, r, err
}

// damaged says how much is not right.
func damaged(what string, index locate.Location, x *blob.Index, r verify.Report, unfinished bool) error {
	much := fmt.Sprintf("%d of %s (%s)", r.Bad, chunks(int64(x.Len())), size(r.BadBytes))
	if len(r.Causes) > 0 {
		return damagedError{fmt.Sprintf("%s does not hold %s whole: %s are missing or damaged", what, index, much)}
	}
	if unfinished {
		much = "it begins with zeros, as an assemble that was not finished leaves it; " + much
	}
	return damagedError{fmt.Sprintf("%s is not the image of %s: %s differ", what, index, much)}
}

// isUnfinished says whether what should hold an image of size bytes begins with zeros where file systems are
// recognised, as it does while an assemble changes it.
func isUnfinished(ctx context.Context, location string, size int64) bool {
	f, err := openWhole(ctx, location, size)
	if err != nil {
		return false
	}
	defer f.Close()
	start := make([]byte, min(size, 4096))
	n, _ := f.ReadAt(start, 0)
	return n == len(start) && len(bytes.Trim(start, "\x00")) == 0
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
