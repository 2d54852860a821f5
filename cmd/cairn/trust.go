package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/store/locate"
)

// keyDirs are the flags that name the directories of trusted keys.
type keyDirs struct{ dirs []string }

func (f *keyDirs) addFlags(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.dirs, "keys", nil,
		"`directory` of trusted keys, instead of "+strings.Join(trust.KeyDirs(), " and ")+"; repeatable")
}

func (f *keyDirs) load() (*trust.Keys, error) {
	if len(f.dirs) == 0 {
		return trust.LoadKeys(trust.KeyDirs()...)
	}
	keys, err := trust.LoadKeys(f.dirs...)
	if err == nil && keys.IsEmpty() { // a mistyped directory must not mean that nothing is checked
		err = usageError{fmt.Errorf("--keys %s: there is no key (NAME.pub or NAME.keys)", strings.Join(f.dirs, ", "))}
	}
	return keys, err
}

// trustFlags select an image by a signed release, and say whether an index without one may be used.
type trustFlags struct {
	keyDirs
	release       locate.Location // zero without --release
	role          string
	allowUnsigned bool
}

// addTo adds the flags to a command whose first argument is INDEX. With --release, the command has no such argument: its
// functions get the release's location in its place. addTo must be the last change of the command.
func (f *trustFlags) addTo(c *cobra.Command) {
	f.keyDirs.addFlags(c)
	text := ""
	c.Flags().Var(funcFlag{"location", "", func(given string) error {
		text = given
		return locationFlag(&f.release).Set(given)
	}}, "release", "signed `release` that lists the image, in place of INDEX")
	c.Flags().StringVar(&f.role, "role", "", "`role` of the image in the release (not needed if it has one image)")
	c.Flags().BoolVar(&f.allowUnsigned, "allow-unsigned", false, "use an index although no trusted key vouches for it")
	addCheck(c, func([]string) error {
		switch {
		case f.role != "" && f.release.IsZero():
			return errors.New("--role needs --release")
		case f.release.IsStream():
			return errors.New("--release -: the release lies beside its indexes, and nothing lies beside stdin")
		}
		return nil
	})
	complete := func(args []string) []string {
		if text == "" {
			return args
		}
		return append([]string{text}, args...)
	}
	check, before, run := c.Args, c.PreRunE, c.RunE
	c.Args = func(c *cobra.Command, args []string) error {
		if text != "" && check(c, complete(args)) != nil {
			return usageError{fmt.Errorf("--release stands in place of INDEX: want '%s' without it", c.UseLine())}
		}
		return check(c, complete(args))
	}
	c.PreRunE = func(c *cobra.Command, args []string) error { return before(c, complete(args)) }
	c.RunE = func(c *cobra.Command, args []string) error { return run(c, complete(args)) }
}

// errUnsigned reports an index that no release vouches for.
var errUnsigned = trust.Refuse("this machine has trusted keys, and no release that they have signed was given")

const hintUnsigned = "name a release with --release, or give --allow-unsigned"

// openIndex opens the index at a location, or the one that the release there lists, and sets the location to that of the index.
// Where keys are trusted, an index without release is refused. read reads such an index.
func (f *trustFlags) openIndex(
	ctx context.Context, at *locate.Location, a access, read func(context.Context, locate.Location, access) (*blob.Index, error),
) (*blob.Index, error) {
	keys, err := f.load()
	if err != nil {
		return nil, err
	}
	if f.release.IsZero() {
		if !keys.IsEmpty() && !f.allowUnsigned {
			return nil, hintError{fmt.Errorf("reading index %s: %w", *at, errUnsigned), hintUnsigned}
		}
		if !keys.IsEmpty() {
			logf("warning: --allow-unsigned: nobody vouches for the index %s", *at)
		}
		return read(ctx, *at, a)
	}
	r, err := f.openRelease(ctx, keys, a)
	if err != nil {
		return nil, err
	}
	logf("release %s: %s %s, serial %d", f.release, r.Name, r.Version, r.Serial)
	m, err := r.Image(f.role)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", f.release, err)}
	}
	x, index, err := release.OpenListed(ctx, a.releaseAccess(), f.release, m.Index)
	if err != nil {
		return nil, hintIndex(err)
	}
	if x.Size() != m.Size {
		return nil, fmt.Errorf("%s: %w: its image %s has %d bytes, and the index %d", f.release, trust.ErrInvalid, m.Role, m.Size, x.Size())
	}
	*at = index
	return x, nil
}

// openRelease reads the release, and verifies it unless unsigned ones are allowed.
func (f *trustFlags) openRelease(ctx context.Context, keys *trust.Keys, a access) (*trust.Release, error) {
	file, err := release.ReadNote(ctx, a.releaseAccess(), f.release)
	if err != nil {
		return nil, absentHint(err, "check the release's location")
	}
	open := keys.OpenRelease
	if f.allowUnsigned {
		logf("warning: --allow-unsigned: the signatures of %s are not checked", f.release)
		open = trust.DecodeRelease
	} else if keys.IsEmpty() {
		return nil, refusedError{
			fmt.Sprintf("%s cannot be verified: no key is trusted", f.release),
			"put the publisher's public key into /etc/cairn/keys.d/NAME.pub, or into a directory for --keys",
		}
	}
	r, err := open(file)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", f.release, err)
	}
	return r, nil
}

// signerFlags are the flags about private keys.
type signerFlags struct {
	keys    []string
	command string
	public  string
}

func (f *signerFlags) addFlags(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.keys, "key", nil, "`file` with a private key to sign with; repeatable")
	c.Flags().StringVar(&f.command, "sign-command", "", "`program` with arguments that reads bytes and writes their Ed25519 signature of 64 bytes")
	c.Flags().StringVar(&f.public, "public-key", "", "public `key` of --sign-command, NAME+HASH+BASE64")
	addCheck(c, func([]string) error {
		if (strings.TrimSpace(f.command) == "") != (f.public == "") {
			return errors.New("--sign-command and --public-key need each other")
		}
		return nil
	})
}

// signers returns the keys to sign with.
func (f *signerFlags) signers(ctx context.Context) (all []note.Signer, err error) {
	for _, file := range f.keys {
		s, err := trust.ReadSigner(file)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if strings.TrimSpace(f.command) != "" {
		s, err := trust.NewCommandSigner(ctx, f.public, strings.Fields(f.command), stderr)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// publicKeys returns the public keys of the keys to sign with. They may verify what they have signed before.
func (f *signerFlags) publicKeys() (*trust.Keys, error) {
	keys := trust.NewKeys()
	for _, file := range f.keys {
		public, err := publicOfFile(file)
		if err != nil {
			return nil, err
		}
		if err := keys.AddPublic(public); err != nil {
			return nil, err
		}
	}
	if f.public != "" {
		if err := keys.AddPublic(f.public); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// sign signs a text if there are keys.
func (f *signerFlags) sign(ctx context.Context, text []byte) ([]byte, error) {
	signers, err := f.signers(ctx)
	if err != nil || len(signers) == 0 {
		return text, err
	}
	return trust.Sign(text, signers...)
}
