package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/locate"
)

func newRelease() *cobra.Command {
	c := &cobra.Command{
		Use:   "release",
		Short: "Make, sign and verify releases: signed lists of images",
		Long: `release acts on signed lists of images that belong together. A release names each index by its SHA-256, and an index
names each chunk by its digest. So whoever trusts the signature gets exactly the published images.`,
		Args: requireCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newReleaseMake(), newReleasePublish(), newReleaseSign(), newReleaseShow(), newReleaseVerify())
	return c
}

// listedImage is an image of --image.
type listedImage struct {
	trust.Image
	path string
}

// parseImage parses ROLE=PATH[,order=N][,target=file,name=NAME][,sha256=HEX][,verity=HASH][,partuuid=UUID].
func parseImage(text string) (m listedImage, err error) {
	role, rest, ok := strings.Cut(text, "=")
	if !ok || role == "" || rest == "" {
		return m, errors.New("want ROLE=PATH, such as root=2/root.caibx")
	}
	parts := strings.Split(rest, ",")
	m.Role, m.path = role, parts[0]
	for _, part := range parts[1:] {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "order":
			m.Order, err = strconv.Atoi(value)
		case "target":
			m.Target = value
		case "name":
			m.Name = value
		case "sha256":
			err = m.SHA256.UnmarshalText([]byte(value))
		case "verity":
			m.verity().RootHash = value
		case "partuuid":
			m.verity().PartitionUUID = value
		default:
			err = fmt.Errorf("%q is not one of order=, target=, name=, sha256=, verity= and partuuid=", key)
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", part, err)
		}
	}
	return m, nil
}

func (m *listedImage) verity() *trust.Verity {
	if m.Verity == nil {
		m.Verity = new(trust.Verity)
	}
	return m.Verity
}

type releaseMakeFlags struct {
	access
	signerFlags
	to      locate.Location
	release trust.Release
	images  []listedImage
	extra   []string
}

func newReleaseMake() *cobra.Command {
	var f releaseMakeFlags
	c := &cobra.Command{
		Use:   "make RELEASE",
		Short: "Write a release of published images",
		Long: `make writes the file RELEASE, which lists images. It reads their indexes, which lie in RELEASE's directory or below,
and notes their sizes and digests. With --key or --sign-command it signs the release. RELEASE is a path, or a location
on S3 or an SFTP server. It is not overwritten.

--image is ROLE=INDEX, with the path of INDEX from RELEASE's directory, and perhaps:
  ,order=N                 images are put in place in this order; what boots comes last
  ,target=file,name=NAME   the image goes into a file of this name, and not onto a partition
  ,sha256=HEX              SHA-256 of the whole image, for other programs
  ,verity=HASH             root hash of dm-verity
  ,partuuid=UUID           what the partition is called with it`,
		Example: `  cairn release make /srv/images/42.release --name example.com/os --version 2026.12 --serial 42 \
      --compatible acme-box-2 --image root=42/root.caibx --image kernel=42/kernel.caibx,order=1 --key release.key`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context()) },
	}
	f.access.addFlags(c)
	f.addPatience(c)
	f.signerFlags.addFlags(c)
	noteArg(c, "RELEASE", &f.to)
	f.addReleaseFlags(c, "ROLE=INDEX")
	return c
}

// addReleaseFlags adds the flags about what a release says. image tells what --image names.
func (f *releaseMakeFlags) addReleaseFlags(c *cobra.Command, image string) {
	flags := c.Flags()
	flags.StringVar(&f.release.Name, "name", "", "`name` of the product, such as example.com/os")
	flags.StringVar(&f.release.Version, "version", "", "`version` for people")
	flags.Int64Var(&f.release.Serial, "serial", 0, "`number` that orders releases: each has a larger one")
	flags.Int64Var(&f.release.MinSerial, "min-serial", 0, "`number` below which no machine goes back that has confirmed this release")
	flags.StringArrayVar(&f.release.Compatible, "compatible", nil, "`hardware` that the release runs on; repeatable")
	flags.StringArrayVar(&f.extra, "extra", nil, "`path` of another file of the release, such as a delta, from RELEASE's directory; repeatable")
	flags.Var(funcFlag{"image", "", func(text string) error {
		m, err := parseImage(text)
		f.images = append(f.images, m)
		return err
	}}, "image", "an `image`: "+image+", see above; repeatable")
	for _, name := range []string{"name", "version", "serial", "compatible", "image"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

// noteArg adds the parsing of the first argument as the location of a signed file.
func noteArg(c *cobra.Command, what string, into *locate.Location) {
	addCheck(c, func(args []string) error {
		if err := locationFlag(into).Set(args[0]); err != nil {
			return fmt.Errorf("%s %s: %w", what, hideURLs(args[0]), err)
		}
		if into.IsStream() {
			return fmt.Errorf("%s -: want a file; nothing lies beside stdin or stdout", what)
		}
		return nil
	})
}

// maxExtraFile limits the size of an extra file of a release.
const maxExtraFile = 1 << 30

func (f *releaseMakeFlags) run(ctx context.Context) error {
	r := f.release
	r.Created = time.Now().UTC().Truncate(time.Second)
	for _, m := range f.images {
		file, listed, err := release.ListFile(ctx, f.releaseAccess(), f.to, m.path, 104+40*blob.MaxChunks)
		if err != nil {
			return hintIndex(fmt.Errorf("image %s: %w", m.Role, err))
		}
		x, err := blob.Decode(bytes.NewReader(file))
		if err != nil {
			return fmt.Errorf("image %s: index %s: %w", m.Role, m.path, err)
		}
		m.Index, m.Size = listed, x.Size()
		r.Images = append(r.Images, m.Image)
	}
	for _, path := range f.extra {
		_, listed, err := release.ListFile(ctx, f.releaseAccess(), f.to, path, maxExtraFile)
		if err != nil {
			return err
		}
		r.Extra = append(r.Extra, listed)
	}
	text, err := r.Encode()
	if err != nil {
		return usageError{fmt.Errorf("the release cannot be written: %w", err)}
	}
	return f.write(ctx, text, &f.access, f.to, true)
}

// write signs a text and writes it.
func (f *signerFlags) write(ctx context.Context, text []byte, a *access, to locate.Location, createOnly bool) error {
	file, err := f.sign(ctx, text)
	if err != nil {
		return err
	}
	access, err := a.openAccess()
	if err != nil {
		return err
	}
	if err := release.WriteNote(ctx, access, to, file, createOnly); err != nil {
		if errors.Is(err, store.ErrExists) {
			return hintError{err, "a release never changes: choose another name and a larger --serial"}
		}
		return usageIfUnsupported(err)
	}
	by := "not signed yet: sign it with 'cairn release sign'"
	if signers := trust.Signers(file); len(signers) > 0 {
		by = "signed by " + strings.Join(signers, ", ")
	}
	logf("wrote %s, %s", to, by)
	return nil
}

func newReleaseSign() *cobra.Command {
	var f struct {
		access
		signerFlags
		at locate.Location
	}
	c := &cobra.Command{
		Use:   "sign FILE",
		Short: "Add a signature to a release, a channel or a key set",
		Long: `sign adds the signatures of --key and --sign-command to FILE, which is a release, a channel or a key set. Other
signatures stay. Look at the file before, with 'cairn release show'.`,
		Example: `  cairn release sign 42.release --key second.key
  cairn release sign 42.release --sign-command 'hsm-sign slot1' --public-key "$(cairn key show --name hsm hsm.pem)"`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			file, err := release.ReadNote(c.Context(), f.releaseAccess(), f.at)
			if err != nil {
				return err
			}
			if err := trust.Check(file); err != nil {
				return fmt.Errorf("signing %s: %w", f.at, err)
			}
			return f.write(c.Context(), file, &f.access, f.at, false)
		},
	}
	f.access.addFlags(c)
	f.addPatience(c)
	f.signerFlags.addFlags(c)
	noteArg(c, "FILE", &f.at)
	addCheck(c, func([]string) error {
		if len(f.keys) == 0 && f.command == "" {
			return errors.New("sign needs --key or --sign-command")
		}
		return nil
	})
	return c
}

func newReleaseShow() *cobra.Command {
	var a access
	var at locate.Location
	var asJSON bool
	c := &cobra.Command{
		Use:   "show RELEASE",
		Short: "Print what a release lists, without verifying it",
		Long: `show prints what RELEASE lists, and who claims to have signed it. It verifies nothing: see 'cairn release
verify'.`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			file, err := release.ReadNote(c.Context(), a.releaseAccess(), at)
			if err != nil {
				return err
			}
			r, err := trust.DecodeRelease(file)
			if err != nil {
				return fmt.Errorf("release %s: %w", at, err)
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), r)
			}
			return printRelease(c.OutOrStdout(), r, trust.Signers(file))
		},
	}
	a.addFlags(c)
	a.addPatience(c)
	addJSON(c, &asJSON)
	noteArg(c, "RELEASE", &at)
	return c
}

func printRelease(w io.Writer, r *trust.Release, signers []string) error {
	printLine(w, "%s %s, serial %d, made %s", r.Name, r.Version, r.Serial, r.Created.Format(time.RFC3339))
	if r.MinSerial > 0 {
		printLine(w, "no machine that has confirmed it goes below serial %d", r.MinSerial)
	}
	printLine(w, "for %s", strings.Join(r.Compatible, ", "))
	for _, m := range r.Images {
		printLine(w, "%s: %s, index %s, SHA-256 %s", m.Role, plaintext.Size(m.Size), m.Index.Path, hex.EncodeToString(m.Index.SHA256[:8]))
	}
	if len(signers) == 0 {
		printLine(w, "not signed")
		return nil
	}
	printLine(w, "signatures, not verified: %s", strings.Join(signers, ", "))
	return nil
}

func newReleaseVerify() *cobra.Command {
	var f struct {
		access
		trustFlags
	}
	c := &cobra.Command{
		Use:   "verify RELEASE",
		Short: "Verify the signatures of a release, and that its indexes are there",
		Long: `verify checks that trusted keys have signed RELEASE, and that each index and extra file is there with its size and
digest. It reads no chunk: 'cairn verify --release RELEASE --role ROLE' does. Exit status 3 says that something is
wrong.`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			keys, err := f.load()
			if err != nil {
				return err
			}
			r, err := f.openRelease(ctx, keys, f.access)
			if err != nil {
				return err
			}
			for _, m := range r.Images {
				if _, _, err := release.OpenListed(ctx, f.releaseAccess(), f.release, m.Index); err != nil {
					return hintIndex(err)
				}
			}
			for _, extra := range r.Extra {
				_, listed, err := release.ListFile(ctx, f.releaseAccess(), f.release, extra.Path, extra.Size+1)
				if err != nil {
					return err
				}
				if listed != extra {
					return trust.Refuse("extra file %s is not the one that the release lists", extra.Path)
				}
			}
			logf("%s is signed by trusted keys, and its %s are there: %s %s, serial %d", f.release,
				plaintext.Count(int64(len(r.Images)), "index"), r.Name, r.Version, r.Serial)
			return nil
		},
	}
	f.access.addFlags(c)
	f.addPatience(c)
	f.keyDirs.addFlags(c)
	noteArg(c, "RELEASE", &f.release)
	return c
}
