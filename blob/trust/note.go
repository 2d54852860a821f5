package trust

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
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

// firstLine returns the first line of the text of a note.
func (k Kind) firstLine() string { return "cairn " + string(k) + " 1\n" }

// open verifies a note, and decodes its body into v. The signatures are checked before anything is parsed.
func (k *Keys) open(kind Kind, msg []byte, v any) error {
	body, err := k.verify(kind, msg)
	if err != nil {
		return err
	}
	return decodeBody(kind, body, v)
}

// verify checks the signatures of a note, and returns its text.
func (k *Keys) verify(kind Kind, msg []byte) (text string, err error) {
	if len(msg) > MaxSize {
		return "", fmt.Errorf("%w: it has more than %d bytes", ErrUntrusted, MaxSize)
	}
	n, err := note.Open(msg, k.verifiers())
	if bad := (*note.InvalidSignatureError)(nil); errors.As(err, &bad) {
		return "", fmt.Errorf("%w: the signature of key %s is wrong", ErrUntrusted, bad.Name)
	}
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return "", fmt.Errorf("%w: it is signed by %s", ErrUntrusted, signersOf(unverified.Note.UnverifiedSigs))
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := k.checkSigners(kind, n.Sigs); err != nil {
		return "", err
	}
	return n.Text, nil
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

// signersOf returns the names of the keys of signatures.
func signersOf(sigs []note.Signature) string {
	var names []string
	for _, s := range sigs {
		if name := fmt.Sprintf("%s+%08x", s.Name, s.Hash); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
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
func Signers(file []byte) (signers []string) {
	n, err := splitNote(file)
	if err != nil {
		return nil
	}
	for _, s := range n.UnverifiedSigs {
		signers = append(signers, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return signers
}
