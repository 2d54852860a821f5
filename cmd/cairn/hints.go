package main

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/web"
)

// absentHint adds a hint to the error about something that is not there. Any other failure has its own.
func absentHint(err error, hint string) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return hintError{err, hint}
	}
	return err
}

// trustHint is what to try when one side does not believe who the other is.
func trustHint(err error) string {
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case is[x509.UnknownAuthorityError](err):
		return "if the server's authority is your own, name its certificate: --ca-cert FILE"
	case is[x509.HostnameError](err):
		return "use a name that the server's certificate has, or have it issued for this one"
	case isInvalid && invalid.Reason == x509.Expired:
		return "check this machine's clock, then the dates of the server's certificate"
	case isInvalid:
		return "the server's certificate, or one above it, is not made for this: have it issued anew"
	case errors.Is(err, web.ErrNoCertificate):
		return "name one that the server believes: --client-cert FILE --client-key FILE"
	case errors.Is(err, web.ErrScheme):
		return "check whether the location is to begin with https:// or http://"
	case errors.Is(err, sftp.ErrHostKey):
		return "connect once by hand, as the same user: ssh HOST, and compare the key"
	}
	return ""
}

// accessHint is what to try when somebody on the way to the bytes refuses: who it is decides what helps.
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

// refusedHint is what to try when a target is refused for a reason that blockdev does not know.
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

// tableHint is what to try when a partition cannot be found.
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

// sshHint finds among the arguments the location of an ssh server as scp and casync have it, if that is what the error
// is about.
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
