package trust

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"cairn/internal/plaintext"
)

// MaxSize is the size limit of a note in bytes. A reader refuses a larger file before it looks into it.
const MaxSize = 1_000_000

// Errors that callers decide by. All of them say that a file must not be used.
var (
	// ErrUntrusted reports a file without the signatures that it needs.
	ErrUntrusted = errors.New("it is not signed by the trusted keys")
	// ErrInvalid reports a file that is signed, or to be signed, and that breaks a rule of its format.
	ErrInvalid = errors.New("it is invalid")
)

// RefusedError reports a file that must not be used for another reason: it is not the one that a signed file lists, it has
// expired, it is older than what was seen before.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Refuse returns a RefusedError.
func Refuse(format string, args ...any) error { return &RefusedError{fmt.Sprintf(format, args...)} }

// Kind is the kind of a note, the first word of its text.
type Kind string

// The kinds.
const (
	Releases Kind = "release"
	Channels Kind = "channel"
	KeySets  Kind = "keys"
)

// kinds are all kinds, in the order of messages.
var kinds = []Kind{Releases, Channels, KeySets}

// noun returns the kind for messages.
func (k Kind) noun() string {
	if k == KeySets {
		return "key set"
	}
	return string(k)
}

// firstLine returns the first line of the text of a note.
func (k Kind) firstLine() string { return "cairn " + string(k) + " 1\n" }

// body is the body of a note.
type body interface {
	Check() error
	product() string
}

func (r *Release) product() string { return r.Name }
func (c *Channel) product() string { return c.Name }

// open verifies a note, and decodes its body into v. The signatures are checked before anything is parsed. Then they are
// checked again for the product of the body.
func (k *Keys) open(kind Kind, msg []byte, v body) error {
	n, err := k.verify(kind, msg)
	if err != nil {
		return err
	}
	if err := decodeBody(kind, n.Text, v); err != nil {
		return err
	}
	if err := v.Check(); err != nil {
		return err
	}
	return k.checkSigners(kind, v.product(), n.Sigs)
}

// verify checks the signatures of a note.
func (k *Keys) verify(kind Kind, msg []byte) (*note.Note, error) {
	if len(msg) > MaxSize {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrUntrusted, MaxSize)
	}
	n, err := note.Open(msg, k.verifiers())
	if bad := (*note.InvalidSignatureError)(nil); errors.As(err, &bad) {
		return nil, fmt.Errorf("%w: the signature of key %s is wrong", ErrUntrusted, bad.Name) // a trusted key's name
	}
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return nil, fmt.Errorf("%w: it is signed by %s", ErrUntrusted, signersOf(unverified.Note.UnverifiedSigs))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := k.checkSigners(kind, anyProduct, n.Sigs); err != nil {
		return nil, err
	}
	return n, nil
}

// decodeBody decodes the JSON of a note's text into v.
func decodeBody(kind Kind, text string, v any) error {
	body, ok := strings.CutPrefix(text, kind.firstLine())
	if !ok {
		line, _, _ := strings.Cut(text, "\n")
		return fmt.Errorf("%w: its first line is %.40q, not %q: it is another kind of file, or of a later version of cairn",
			ErrInvalid, line, strings.TrimSpace(kind.firstLine()))
	}
	if err := decodeStrict([]byte(body), v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// signersOf returns the first names of the keys of signatures, which nobody may have checked.
func signersOf(sigs []note.Signature) string {
	const most = 8
	names := signerNames(sigs)
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("%d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// signerNames returns the names and hashes of the keys of signatures. The names are cut, and have no control characters.
func signerNames(sigs []note.Signature) (names []string) {
	for _, s := range sigs {
		if name := fmt.Sprintf("%s+%08x", plaintext.Clean(s.Name, 100), s.Hash); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Sign adds signatures to a note, or makes one of the text of an unsigned file, which ends with a line break. A signature
// of the same key that is there already is replaced.
func Sign(file []byte, signers ...note.Signer) ([]byte, error) {
	n, err := splitNote(file)
	if err != nil {
		return nil, err
	}
	own := func(s note.Signature) bool {
		return slices.ContainsFunc(signers, func(k note.Signer) bool { return k.Name() == s.Name && k.KeyHash() == s.Hash })
	}
	n.UnverifiedSigs = slices.DeleteFunc(n.UnverifiedSigs, own)
	signed, err := note.Sign(n, signers...)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if len(signed) > MaxSize {
		return nil, fmt.Errorf("signing: %w: it has more than %d bytes", ErrInvalid, MaxSize)
	}
	return signed, nil
}

// splitNote splits a file into its text and its signatures, which nobody has checked.
func splitNote(file []byte) (*note.Note, error) {
	if len(file) > MaxSize {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrInvalid, MaxSize)
	}
	_, err := note.Open(file, note.VerifierList())
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return unverified.Note, nil
	}
	if !strings.HasSuffix(string(file), "\n") {
		return nil, fmt.Errorf("%w: its last line does not end", ErrInvalid)
	}
	return &note.Note{Text: string(file)}, nil
}

// Signers returns the names and hashes of the keys that have signed a note, without checking the signatures.
func Signers(file []byte) []string {
	n, err := splitNote(file)
	if err != nil {
		return nil
	}
	return signerNames(n.UnverifiedSigs)
}
