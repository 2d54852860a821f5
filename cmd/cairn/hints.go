package main

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/internal/blockdev"
	"cairn/internal/confine"
	"cairn/internal/disk"
	"cairn/internal/openfile"
	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/supply"
	"cairn/store/web"
)

// interruptedHint returns what a command that a signal ended has left, and how to continue.
func interruptedHint(c *cobra.Command, signal syscall.Signal, err error) string {
	hint := "run it again to go on"
	switch c.Name() {
	case "assemble":
		hint = "a target in place is not whole, and a file has not its name yet; run it again to go on"
	case "make":
		hint = "there is no new index; run it again: chunks that are stored stay"
	case "delta":
		hint = "no unfinished delta is published; run it again: finished ones stay"
	}
	if hasType[streamError](err) {
		hint = "the output is the beginning of the image; run it again to begin anew"
	}
	if h, ok := errors.AsType[hookError](err); ok {
		hint = fmt.Sprintf("%s holds the image; run %s, or assemble again", h.target, h.program)
	}
	if signal == syscall.SIGHUP {
		hint += ". 'nohup cairn …' or 'systemd-run cairn …' goes on when its terminal or ssh session is closed"
	}
	return hint
}

// hintFor returns what to do about an error of a command, or "".
func hintFor(c *cobra.Command, err error, status int) string {
	if h, ok := errors.AsType[hintError](err); ok {
		return h.hint
	}
	if refused, ok := errors.AsType[refusedError](err); ok {
		return refused.hint
	}
	if refused, ok := errors.AsType[*blockdev.RefusedError](err); ok {
		return cmp.Or(refused.Hint, refusedHint(refused, hasType[streamError](err)))
	}
	if closed, ok := errors.AsType[openfile.ClosedError](err); ok && closed.FD == openfile.Stdout {
		return ">/dev/null discards the output"
	}
	if hint := cmp.Or(accessHint(err), tableHint(err)); hint != "" {
		if when := c.Flag("confine"); when != nil && when.Value.String() != confineOff && errors.Is(err, fs.ErrPermission) {
			hint += "; --confine off tells whether the confinement is the cause"
		}
		return hint
	}
	again := "finished work is not repeated"
	if hasType[streamError](err) {
		again = "a stream begins anew"
	}
	switch {
	case status == exitMended:
		return "run make again for the images that have those chunks, or verify with --repair STORE and the indexes"
	case errors.Is(err, keep.ErrCannotList):
		return "name indexes: then the store is asked for their chunks"
	case status == exitUsage && c.HasParent():
		return fmt.Sprintf("see '%s --help'", c.CommandPath())
	case status == exitUsage:
		return "see 'cairn help'"
	case errors.Is(err, confine.ErrUnsupported):
		return "--confine auto confines the process as far as the kernel can"
	case errors.Is(err, supply.ErrBudget):
		return "run it again with a larger --max-download; " + again
	case errors.Is(err, syscall.ENOSPC):
		return "make room and run it again"
	case errors.Is(err, store.ErrUnavailable):
		return "check the network and the server, and run it again; " + again
	case hasType[*assemble.ImageSumError](err):
		return "the index is of another image than --image-sha256 says"
	case errors.Is(err, store.ErrExists):
		return "choose another name, or leave --create-only out to replace it"
	case hasType[release.TreeError](err) || errors.Is(err, blob.ErrArchive):
		return "casync and desync extract directory trees; an image's index has a name that ends in .caibx"
	case errors.Is(err, delta.ErrInvalid):
		return "'cairn store verify STORE --remove-damaged' removes damaged deltas"
	case errors.Is(err, gcroot.ErrInvalid):
		return "'cairn repo check STORE' lists all damaged gc roots"
	case errors.Is(err, blob.ErrInvalid):
		return "the index is damaged or is something else; get it again"
	case hasType[*store.CorruptError](err):
		return "the store's copy is damaged; 'cairn verify INDEX' lists all damaged chunks, and another store (-s) may have them"
	case hasType[*release.VanishedError](err):
		return "another program removes chunks from this store; when it has ended run it again, without --base if that was given"
	case errors.Is(err, store.ErrNotFound):
		return "'cairn verify INDEX -s STORE' lists what a store lacks; -s names another store"
	}
	return ""
}

// absentHint adds a hint to an error if something does not exist. Other failures have hints of their own.
func absentHint(err error, hint string) error {
	if isAny(err, store.ErrNotFound, fs.ErrNotExist) {
		return hintError{err, hint}
	}
	return err
}

// trustHint returns the hint for a failed authentication of a server or client.
func trustHint(err error) string {
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case hasType[x509.UnknownAuthorityError](err):
		return "if the server's authority is your own, name its certificate: --ca-cert FILE"
	case hasType[x509.HostnameError](err):
		return "use a name that the server's certificate has, or have it issued for this one"
	case isInvalid && invalid.Reason == x509.Expired:
		return "check this machine's clock, then the dates of the server's certificate"
	case isInvalid:
		return "the server's certificate, or one above it, is not made for this: have it issued anew"
	case errors.Is(err, web.ErrNoCertificate):
		return "name one that the server believes: --client-cert FILE --client-key FILE"
	case errors.Is(err, web.ErrScheme):
		return "check whether the location must begin with https:// or http://"
	case errors.Is(err, sftp.ErrHostKey):
		return "connect once by hand, as the same user: ssh HOST, and compare the key"
	}
	return ""
}

// accessHint returns the hint for a request that was refused. The hint depends on the refuser: a proxy, a server, S3 or
// the file system.
func accessHint(err error) string {
	if hint := trustHint(err); hint != "" {
		return hint
	}
	switch {
	case errors.Is(err, transfer.ErrProxy):
		return "check the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names, and its USER:PASSWORD@; hosts in NO_PROXY are reached without it"
	case errors.Is(err, s3.ErrClock):
		return "set this machine's clock (timedatectl): S3 takes requests of the last 15 minutes only"
	case errors.Is(err, s3.ErrNoBucket):
		return "check the bucket's name and the endpoint (AWS_ENDPOINT_URL), or make the bucket"
	case errors.Is(err, s3.ErrDenied):
		return "check the keys (AWS_ACCESS_KEY_ID, AWS_PROFILE and so on) and their rights: s3:GetObject, s3:ListBucket, and s3:PutObject to write"
	case errors.Is(err, sftp.ErrLogin):
		return "log in once by hand, as the same user and without a password: ssh -o BatchMode=yes [USER@]HOST"
	case errors.Is(err, sftp.ErrDenied):
		return "check the permissions of the path on the server, for the user that ssh logs in as"
	case errors.Is(err, fs.ErrPermission):
		return "check the permissions of the path and of the directories above it, or run it as root"
	case errors.Is(err, web.ErrUnauthorized):
		return "the server wants credentials: --bearer-token-file, --basic-auth-file or --header-file"
	case errors.Is(err, store.ErrDenied):
		return "check the path, and what these credentials may do there: the server knows them, or wants none, and refuses"
	case errors.Is(err, web.ErrNoAbsence):
		return "have the server answer 404 for files that do not exist (nginx: no error_page with =200, no try_files to a page)"
	case errors.Is(err, web.ErrForm):
		return "--compression none stores plain chunks; without it they are compressed"
	}
	return ""
}

// refusedHint returns the hint for a target that was refused, if blockdev gave none.
func refusedHint(refused *blockdev.RefusedError, stream bool) string {
	switch {
	case refused.Check == blockdev.CheckMoved:
		return "look at the table ('cairn disk DISK'), and run it again"
	case refused.Check == blockdev.CheckOverlap && stream:
		return "write to another file"
	case refused.Check == blockdev.CheckOverlap:
		return "leave that seed out: what the target holds is used without it"
	}
	return ""
}

// tableHint returns the hint for a partition that was not found.
func tableHint(err error) string {
	switch {
	case errors.Is(err, disk.ErrMBR):
		return "partitions by name need a GPT; name the partition's device, such as /dev/sda2 ('lsblk' lists them, 'losetup -P --find --show " +
			"FILE' makes them for an image), or convert the disk with 'sgdisk --mbrtogpt'"
	case errors.Is(err, disk.ErrNoTable):
		return "name a whole disk, or the image of one, that has a GPT"
	case errors.Is(err, disk.ErrNotFound):
		return "'cairn disk DISK' lists the partitions"
	}
	return ""
}

// sshHint returns the hint for an argument that names a file on an ssh server as scp and casync do, if err quotes it.
func sshHint(args []string, err error) string {
	for _, arg := range args {
		if flag, value, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(flag, "-") {
			arg = value
		}
		location, is := locate.OverSSH(arg)
		if !is || !strings.Contains(err.Error(), arg) {
			continue
		}
		if scheme, _, _ := strings.Cut(arg, ":"); slices.Contains([]string{"http", "https", "s3", "sftp"}, scheme) {
			return "a URL has two slashes: " + scheme + "://…"
		}
		return "a file on a server, over ssh, is " + location + "; a file here of that name is ./" + arg
	}
	return ""
}
