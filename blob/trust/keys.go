package trust

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"cairn/internal/owndir"
)

// Keys are the public keys that a machine trusts, and for which kinds of notes.
type Keys struct {
	known  map[string]note.Verifier // by the text of the key
	groups []group
}

// group is a rule: so many of these keys must have signed a note of this kind.
type group struct {
	kind      Kind
	product   string // the rule is about its notes only; "" for all products
	threshold int
	keys      []note.Verifier
}

// NewKeys returns no keys.
func NewKeys() *Keys { return &Keys{known: map[string]note.Verifier{}} }

// IsEmpty reports whether no key is trusted.
func (k *Keys) IsEmpty() bool { return len(k.known) == 0 }

// verifiers returns all keys: a wrong signature of any of them refuses a note, whatever the key is for.
func (k *Keys) verifiers() note.Verifiers {
	return note.VerifierList(slices.Collect(maps.Values(k.known))...)
}

// anyProduct stands for the product of a note that is not decoded yet.
const anyProduct = ""

// checkSigners returns ErrUntrusted unless verified signatures fulfil a rule about the kind and the product.
func (k *Keys) checkSigners(kind Kind, product string, sigs []note.Signature) error {
	most, hint := 0, ""
	for _, g := range k.groups {
		if g.kind != kind || product != anyProduct && g.product != "" && g.product != product {
			continue
		}
		n := 0
		for _, key := range g.keys {
			if slices.ContainsFunc(sigs, func(s note.Signature) bool { return s.Name == key.Name() && s.Hash == key.KeyHash() }) {
				n++
			}
		}
		if n >= g.threshold {
			return nil
		}
		if n > most {
			most, hint = n, fmt.Sprintf("; %d of the %d needed keys of a set have signed it", n, g.threshold)
		}
	}
	of := ""
	if product != anyProduct {
		of = " of " + product
	}
	return fmt.Errorf("%w: it is signed by %s, which is not enough for a %s%s%s", ErrUntrusted, signersOf(sigs), kind.noun(), of, hint)
}

// Fingerprint returns a text that changes with the keys that may sign a kind of notes.
func (k *Keys) Fingerprint(kind Kind) string {
	var rules []string
	for _, g := range k.groups {
		if g.kind != kind {
			continue
		}
		var keys []string
		for _, key := range g.keys {
			keys = append(keys, fmt.Sprintf("%s+%08x", key.Name(), key.KeyHash()))
		}
		slices.Sort(keys)
		rules = append(rules, fmt.Sprintf("%q %d %q", g.product, g.threshold, keys))
	}
	slices.Sort(rules)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(slices.Compact(rules), "\n"))))[:32]
}

// add trusts a key for some kinds of notes: one signature of it is enough.
func (k *Keys) add(key string, allowed []Kind) error {
	v, err := k.know(key)
	if err != nil {
		return err
	}
	for _, kind := range allowed {
		k.groups = append(k.groups, group{kind: kind, threshold: 1, keys: []note.Verifier{v}})
	}
	return nil
}

// know returns the verifier of the text of a key.
func (k *Keys) know(key string) (note.Verifier, error) {
	if v, is := k.known[key]; is {
		return v, nil
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %.80q is no public key: want NAME+HASH+BASE64", ErrInvalid, key)
	}
	for text, other := range k.known {
		if other.Name() == v.Name() && other.KeyHash() == v.KeyHash() {
			return nil, fmt.Errorf("%w: the keys %s and %s have the same name and hash", ErrInvalid, key, text)
		}
	}
	k.known[key] = v
	return v, nil
}

// AddPublic trusts the keys of a public key file. A line has a key, behind the kinds of notes that it may sign, such as
// "release,channel KEY". A key alone may sign all of them. Empty lines and lines that begin with # do not count.
func (k *Keys) AddPublic(text string) error {
	found := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		allowed := kinds
		if len(fields) > 1 {
			allowed = nil
			for word := range strings.SplitSeq(fields[0], ",") {
				if !slices.Contains(kinds, Kind(word)) {
					return fmt.Errorf("%w: a key is for %.40q: want release, channel or keys", ErrInvalid, word)
				}
				allowed = append(allowed, Kind(word))
			}
			fields = fields[1:]
		}
		if len(fields) > 1 {
			return fmt.Errorf("%w: a line has more than a key: %.80q", ErrInvalid, line)
		}
		if err := k.add(fields[0], allowed); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return fmt.Errorf("%w: it has no key", ErrInvalid)
	}
	return nil
}

// KeySet says which keys sign what of a product, and how many of them must.
type KeySet struct {
	Name     string    `json:"name"`   // the product
	Serial   int64     `json:"serial"` // the next set has this plus one
	Created  time.Time `json:"created"`
	Releases Quorum    `json:"release"`
	Channels Quorum    `json:"channel"`
	KeySets  Quorum    `json:"keys"` // who may sign the next key set
}

// Quorum is a set of keys of which a number must have signed.
type Quorum struct {
	Threshold int      `json:"threshold"`
	Keys      []string `json:"keys"` // NAME+HASH+BASE64
}

const maxKeys = 32

// Check returns an ErrInvalid if a key set breaks a rule of the format.
func (s *KeySet) Check() error {
	if !namePattern.MatchString(s.Name) {
		return invalid("its name is %.40q: want the name of a product, such as example.com/os", s.Name)
	}
	if !isSerial(s.Serial) {
		return invalid("its serial is %d: want 1 to %d", s.Serial, MaxSerial)
	}
	for _, kind := range kinds {
		g := s.quorum(kind)
		if len(g.Keys) == 0 || len(g.Keys) > maxKeys || g.Threshold < 1 || g.Threshold > len(g.Keys) {
			return invalid("%d of %d keys must sign a %s", g.Threshold, len(g.Keys), kind.noun())
		}
		if err := g.check(); err != nil {
			return err
		}
	}
	return nil
}

// check returns an ErrInvalid unless the keys are different ones. A key has a name in its text, so one key may have two
// texts.
func (q *Quorum) check() error {
	texts := map[string]string{}
	for _, key := range q.Keys {
		if _, err := NewKeys().know(key); err != nil {
			return err
		}
		parts := strings.SplitN(key, "+", 3) // NewVerifier has checked it
		if other, twice := texts[parts[2]]; twice {
			return invalid("it has a key twice: %s and %s", other, key)
		}
		texts[parts[2]] = key
	}
	return nil
}

func (s *KeySet) quorum(kind Kind) Quorum {
	switch kind {
	case Releases:
		return s.Releases
	case Channels:
		return s.Channels
	case KeySets:
	}
	return s.KeySets
}

// Encode returns the text of a key set, to be signed.
func (s *KeySet) Encode() ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	return encode(KeySets, s)
}

// AddSet trusts the keys of a set, each for what the set says, and for the set's product only.
func (k *Keys) AddSet(s *KeySet) error {
	if err := s.Check(); err != nil {
		return err
	}
	for _, kind := range kinds {
		signers := s.quorum(kind)
		g := group{kind: kind, product: s.Name, threshold: signers.Threshold}
		for _, key := range signers.Keys {
			v, err := k.know(key)
			if err != nil {
				return err
			}
			g.keys = append(g.keys, v)
		}
		k.groups = append(k.groups, g)
	}
	return nil
}

// OpenFirstKeySet decodes a key set that a machine trusts because of the place where it lies. Its own keys must have
// signed it.
func OpenFirstKeySet(file []byte) (*KeySet, error) {
	var s KeySet
	if err := decodeUnsigned(KeySets, file, &s); err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := s.verify(file); err != nil {
		return nil, err
	}
	return &s, nil
}

// OpenNextKeySet opens the key set that follows s. Enough keys of both sets must have signed it.
func (s *KeySet) OpenNextKeySet(file []byte) (*KeySet, error) {
	if err := s.verify(file); err != nil {
		return nil, err
	}
	next, err := OpenFirstKeySet(file)
	switch {
	case err != nil:
		return nil, err
	case next.Name != s.Name:
		return nil, Refuse("it is of the product %s, not %s", next.Name, s.Name)
	case next.Serial != s.Serial+1:
		return nil, Refuse("its serial is %d, and it must follow %d", next.Serial, s.Serial)
	}
	return next, nil
}

// verify returns ErrUntrusted unless enough keys of the set have signed a key set.
func (s *KeySet) verify(file []byte) error {
	k := NewKeys()
	if err := k.AddSet(s); err != nil {
		return err
	}
	_, err := k.verify(KeySets, file)
	return err
}

// Suffixes of the files in a key directory.
const (
	PublicSuffix = ".pub"
	KeySetSuffix = ".keys"
)

// KeyDirs are the directories of the keys that a machine trusts: those of its image, and those of its owner.
func KeyDirs() []string { return []string{"/usr/lib/cairn/keys.d", "/etc/cairn/keys.d"} }

// LoadKeys reads the keys in directories. A directory may be absent. It must belong to root or the user, and no other user
// may write it or its files. A file that cannot be read or is invalid is an error: without it, keys would be missing. Of
// several key sets of a product, only the one with the largest serial counts.
func LoadKeys(dirs ...string) (*Keys, error) {
	k, sets := NewKeys(), newestSets{}
	for _, dir := range dirs {
		if err := k.loadDir(dir, sets); err != nil {
			return nil, fmt.Errorf("reading trusted keys: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		if err := k.AddSet(sets[name].KeySet); err != nil {
			return nil, fmt.Errorf("reading trusted keys: the key set of %s: %w", name, err)
		}
	}
	return k, nil
}

// newestSets are key sets by product.
type newestSets map[string]openedSet

type openedSet struct {
	*KeySet
	text string // that was signed
}

// add adds a key set file. Two different sets with the same serial are an error: nobody can tell which one counts.
func (n newestSets) add(file []byte) error {
	s, err := OpenFirstKeySet(file)
	if err != nil {
		return err
	}
	signed, err := splitNote(file)
	if err != nil {
		return err
	}
	old, known := n[s.Name]
	if known && old.Serial == s.Serial && old.text != signed.Text {
		return invalid("another key set of %s has the serial %d too", s.Name, s.Serial)
	}
	if !known || s.Serial > old.Serial {
		n[s.Name] = openedSet{s, signed.Text}
	}
	return nil
}

func (k *Keys) loadDir(dir string, sets newestSets) error {
	root, err := owndir.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	names, err := owndir.ReadDir(root, ".")
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		public, set := strings.HasSuffix(name, PublicSuffix), strings.HasSuffix(name, KeySetSuffix)
		if !public && !set {
			continue
		}
		file, err := owndir.ReadFile(root, name, MaxSize)
		if err == nil && public {
			err = k.AddPublic(string(file))
		} else if err == nil {
			err = sets.add(file)
		}
		if err != nil {
			return fmt.Errorf("%s/%s: %w", strings.TrimSuffix(dir, "/"), name, err)
		}
	}
	return nil
}

// ReadSigner reads a private key from a file. Other users may not read it.
func ReadSigner(file string) (note.Signer, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %w", err)
	}
	if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("reading a private key: other users may read %s (mode %04o): chmod 600 it, or make a new key if they have", file, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %s has none: want PRIVATE+KEY+NAME+HASH+BASE64", file)
	}
	return signer, nil
}
