package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/chunker"
	"cairn/store/locate"
)

type releasePublishFlags struct {
	make       makeFlags // of each image
	release    releaseMakeFlags
	channel    channelSetFlags
	channelKey []string
	dir        locate.Location
}

func newReleasePublish() *cobra.Command {
	f := releasePublishFlags{channel: channelSetFlags{channel: trust.Channel{Rollout: trust.Rollout{Percent: 100}}}}
	c := &cobra.Command{
		Use:   "publish DIRECTORY",
		Short: "Publish images, the signed release that lists them, and the channel that points to it",
		Long: `publish does in one command, and in the right order, what 'cairn make', 'cairn release make' and 'cairn channel set'
do: it cuts each image into the store, writes DIRECTORY/SERIAL-ROLE.caibx, then the signed DIRECTORY/SERIAL.release,
and with --channel NAME at last DIRECTORY/NAME.channel. DIRECTORY is a path, or a location on S3 or an SFTP server.
A release that exists is not replaced. After an interruption, run the same command again.

--image is ROLE=IMAGE, with a file or device, and perhaps:
  ,order=N                 images are put in place in this order; what boots comes last
  ,target=file,name=NAME   the image goes into a file of this name, and not onto a partition
  ,sha256=HEX              SHA-256 of the whole image, for other programs
  ,verity=HASH             root hash of dm-verity
  ,partuuid=UUID           what the partition is called with it`,
		Example: `  cairn release publish /srv/images --name example.com/os --version 2026.12 --serial 42 --compatible acme-box-2 \
      --image root=root.squashfs --image boot=boot.img,order=9 --key release.key --channel stable`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context()) },
	}
	m := &f.make
	m.params, m.extent = chunker.Default, ingest.Whole
	m.progress, m.jobs = progressAuto, runtime.GOMAXPROCS(0)
	m.access.addFlags(c)
	m.addPatience(c)
	addStore(c, &m.store, "default.castr in DIRECTORY")
	m.compression.addFlags(c, "zstd `level`, 1 to 22")
	m.layout.addFlags(c)
	addUploads(c, &m.uploads)
	m.gcRoot.addFlag(c)
	f.release.signerFlags.addFlags(c)
	f.release.addReleaseFlags(c, "ROLE=IMAGE")
	c.Flags().StringVar(&f.channel.name, "channel", "", "`name` of a channel that is to point to the release")
	c.Flags().StringArrayVar(&f.channelKey, "channel-key", nil, "`file` with a private key to sign the channel with (default: as the release); repeatable")
	f.channel.addPolicy(c)
	f.channel.keyDirs.addFlags(c)
	noteArg(c, "DIRECTORY", &f.dir)
	addCheck(c, f.check)
	return c
}

func (f *releasePublishFlags) check([]string) error {
	if len(f.release.keys) == 0 && f.release.command == "" {
		return errors.New("publish needs --key or --sign-command: nobody follows what is not signed")
	}
	if len(f.channelKey) > 0 && f.channel.name == "" {
		return errors.New("--channel-key needs --channel")
	}
	r := f.release.release
	r.Created = r.Created.AddDate(2000, 0, 0) // the release is checked before its images are made
	for _, m := range f.release.images {
		m.Index = trust.File{Path: f.indexName(m), Size: 1, SHA256: trust.Sum{1}}
		r.Images = append(r.Images, m.Image)
	}
	if err := r.Check(); err != nil {
		return fmt.Errorf("the release cannot be published: %w", err)
	}
	return nil
}

func (f *releasePublishFlags) indexName(m listedImage) string {
	return fmt.Sprintf("%d-%s%s", f.release.release.Serial, m.Role, release.IndexSuffix)
}

func (f *releasePublishFlags) run(ctx context.Context) error {
	a, dir := f.make.access, f.dir
	name := fmt.Sprintf("%d.release", f.release.release.Serial)
	f.release.access, f.release.to = a, dir.Join(name)
	if _, err := release.ReadNote(ctx, a.releaseAccess(), f.release.to); err == nil {
		return refusedError{fmt.Sprintf("release %s exists", f.release.to), "a release never changes: choose a larger --serial"}
	} else if !release.IsAbsent(err) {
		return err
	}
	if signers, err := f.release.signers(ctx); err != nil || len(signers) == 0 {
		return err
	}
	if f.channel.name != "" {
		f.channel.access, f.channel.to, f.channel.release = a, dir.Join(f.channel.name+".channel"), name
		r := &f.release.release
		keys, err := f.channel.keyDirs.load()
		if err != nil {
			return err
		}
		f.useChannelKeys()
		c := trust.Channel{Name: r.Name, Channel: f.channel.name, Release: trust.Pointer{Serial: r.Serial}}
		if _, err := f.channel.nextSerial(ctx, keys, &c, r); err != nil { // before the work
			return err
		}
	}
	for i, m := range f.release.images {
		image := m.path
		f.make.index = dir.Join(f.indexName(m))
		if err := runMake(ctx, io.Discard, f.make, image); err != nil {
			return fmt.Errorf("publishing %s: %w", m.Role, err)
		}
		f.release.images[i].path = f.indexName(m)
	}
	if err := f.release.run(ctx); err != nil {
		return err
	}
	if f.channel.name == "" {
		return nil
	}
	f.channel.own = true
	return f.channel.run(ctx)
}

// useChannelKeys sets the keys that sign the channel.
func (f *releasePublishFlags) useChannelKeys() {
	f.channel.signerFlags = f.release.signerFlags
	if len(f.channelKey) > 0 {
		f.channel.signerFlags = signerFlags{keys: f.channelKey}
	}
}
