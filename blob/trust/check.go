package trust

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// Limits of the lists in a body, so that a signed mistake costs no memory.
const (
	maxImages     = 64
	maxExtra      = 4096
	maxCompatible = 256
	maxText       = 256
	maxIndexFile  = 1 << 32 // bytes
)

// MaxSerial is the largest serial. Every program that reads JSON has numbers up to it.
const MaxSerial int64 = 1 << 53

func isSerial(n int64) bool { return n > 0 && n <= MaxSerial }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sum) UnmarshalText(text []byte) error {
	sum, err := hex.DecodeString(string(text))
	if err != nil || len(sum) != len(s) || strings.ToLower(string(text)) != string(text) {
		return fmt.Errorf("%.80q is not a SHA-256 of 64 lower-case hexadecimal digits", text)
	}
	copy(s[:], sum)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

var (
	// wordPattern matches the names of roles and channels.
	wordPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)
	// namePattern matches the names of products.
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_./-]{0,199}$`)
	// uuidPattern matches the UUIDs of partitions.
	uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	hashPattern = regexp.MustCompile(`^([0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// checkLine checks a text of a body that people read.
func checkLine(what, text string) error {
	if text == "" || len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return invalid("its %s is %.40q: want 1 to %d bytes of one line", what, text, maxText)
	}
	return nil
}

// check returns an error unless the path stays below the directory of the note. It names no server.
func (f *File) check(what string) error {
	if f.Path == "" || len(f.Path) > 1024 || path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == ".." ||
		strings.HasPrefix(f.Path, "../") || f.Path == "." || strings.ContainsAny(f.Path, "\\?#:%") ||
		strings.ContainsFunc(f.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalid("the path of its %s, %.80q, does not lie below the directory of the file", what, f.Path)
	}
	if f.Size < 0 || f.Size > maxIndexFile {
		return invalid("its %s has %d bytes", what, f.Size)
	}
	return nil
}

// Check returns an ErrInvalid if a release breaks a rule of the format.
func (r *Release) Check() error {
	switch {
	case !namePattern.MatchString(r.Name):
		return invalid("its name is %.40q: want the name of a product, such as example.com/os", r.Name)
	case !isSerial(r.Serial):
		return invalid("its serial is %d: want 1 to %d", r.Serial, MaxSerial)
	case r.MinSerial < 0 || r.MinSerial > r.Serial:
		return invalid("its min_serial is %d, and its serial %d", r.MinSerial, r.Serial)
	case len(r.Compatible) == 0 || len(r.Compatible) > maxCompatible:
		return invalid("it lists %d kinds of hardware: want 1 to %d", len(r.Compatible), maxCompatible)
	case len(r.Images) == 0 || len(r.Images) > maxImages:
		return invalid("it has %d images: want 1 to %d", len(r.Images), maxImages)
	case len(r.Extra) > maxExtra:
		return invalid("it has %d extra files: want at most %d", len(r.Extra), maxExtra)
	case r.Created.IsZero():
		return invalid("it lacks the time of its creation")
	}
	if err := checkLine("version", r.Version); err != nil {
		return err
	}
	for _, c := range r.Compatible {
		if err := checkLine("compatible", c); err != nil {
			return err
		}
	}
	roles, files := map[string]bool{}, map[string]bool{}
	for i := range r.Images {
		m := &r.Images[i]
		if roles[m.Role] {
			return invalid("it has two images of the role %q", m.Role)
		}
		if name := strings.ToLower(m.Name); name != "" && files[name] { // FAT does not tell them apart
			return invalid("it has two images for a file %q", m.Name)
		}
		roles[m.Role], files[strings.ToLower(m.Name)] = true, true
		if err := m.check(); err != nil {
			return err
		}
	}
	for i := range r.Extra {
		if err := r.Extra[i].check("extra file"); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) check() error {
	switch {
	case !wordPattern.MatchString(m.Role):
		return invalid("a role is %.40q: want lower-case letters, digits, - _ and .", m.Role)
	case m.Target != "" && m.Target != TargetPartition && m.Target != TargetFile:
		return invalid("the target of %s is %.40q: want %q or %q", m.Role, m.Target, TargetPartition, TargetFile)
	case (m.Target == TargetFile) != (m.Name != ""):
		return invalid("%s: an image for a file has the file's name, and no other one has", m.Role)
	case m.Name != "" && (m.Name == "." || m.Name == ".." || strings.ContainsAny(m.Name, "/\\\x00") || checkLine("name", m.Name) != nil):
		return invalid("the name of %s is %.40q: want the name of a file, without directory", m.Role, m.Name)
	case m.Size < 0:
		return invalid("%s has %d bytes", m.Role, m.Size)
	case m.Index.SHA256 == Sum{} || m.Index.Size == 0:
		return invalid("%s lacks the size or the SHA-256 of its index", m.Role)
	}
	if v := m.Verity; v != nil {
		if !hashPattern.MatchString(v.RootHash) {
			return invalid("the verity root hash of %s is %.80q", m.Role, v.RootHash)
		}
		if v.PartitionUUID != "" && !uuidPattern.MatchString(v.PartitionUUID) {
			return invalid("the partition UUID of %s is %.80q: want lower-case hexadecimal digits", m.Role, v.PartitionUUID)
		}
	}
	return m.Index.check("index of " + m.Role)
}

// Check returns an ErrInvalid if a channel breaks a rule of the format.
func (c *Channel) Check() error {
	switch {
	case !namePattern.MatchString(c.Name):
		return invalid("its name is %.40q: want the name of a product, such as example.com/os", c.Name)
	case !wordPattern.MatchString(c.Channel):
		return invalid("the channel is %.40q: want lower-case letters, digits, - _ and .", c.Channel)
	case !isSerial(c.Serial) || !isSerial(c.Release.Serial):
		return invalid("its serial is %d, and that of the release %d: want 1 to %d", c.Serial, c.Release.Serial, MaxSerial)
	case c.NotAfter.IsZero():
		return invalid("it lacks not_after, the time after which it is not followed")
	case c.Rollout.Percent < 0 || c.Rollout.Percent > 100:
		return invalid("its rollout is %d percent", c.Rollout.Percent)
	case len(c.Rollout.Seed) > maxText:
		return invalid("the seed of its rollout has more than %d bytes", maxText)
	case c.Release.SHA256 == Sum{}:
		return invalid("it lacks the SHA-256 of the release")
	case c.Release.Size < 1 || c.Release.Size > MaxSize:
		return invalid("its release has %d bytes: want 1 to %d", c.Release.Size, MaxSize)
	}
	return c.Release.check("release")
}

// IsExpired reports whether a channel must not be followed at a time.
func (c *Channel) IsExpired(now time.Time) bool { return now.After(c.NotAfter) }

// Image returns the image of a role, or the only one if role is empty.
func (r *Release) Image(role string) (*Image, error) {
	var roles []string
	for i := range r.Images {
		if m := &r.Images[i]; m.Role == role || role == "" && len(r.Images) == 1 {
			return m, nil
		}
		roles = append(roles, r.Images[i].Role)
	}
	if role == "" {
		return nil, fmt.Errorf("the release has several images: choose a role of %s", strings.Join(roles, ", "))
	}
	return nil, fmt.Errorf("the release has no image of the role %q, but %s", role, strings.Join(roles, ", "))
}

// Encode returns the text of a note of a kind with a body, not signed yet.
func encode(kind Kind, body any) ([]byte, error) {
	text, err := json.MarshalIndent(body, "", " ")
	if err != nil {
		return nil, err
	}
	return append(append([]byte(kind.firstLine()), text...), '\n'), nil
}

// Encode returns the text of a release, to be signed.
func (r *Release) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	return encode(Releases, r)
}

// Encode returns the text of a channel, to be signed.
func (c *Channel) Encode() ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	return encode(Channels, c)
}

// DecodeRelease decodes a release whose signatures nobody has checked, for its publisher.
func DecodeRelease(file []byte) (*Release, error) {
	var r Release
	if err := decodeUnsigned(Releases, file, &r); err != nil {
		return nil, err
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	return &r, nil
}

// DecodeChannel decodes a channel whose signatures nobody has checked, for its publisher.
func DecodeChannel(file []byte) (*Channel, error) {
	var c Channel
	if err := decodeUnsigned(Channels, file, &c); err != nil {
		return nil, err
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Check returns an ErrInvalid unless a file is a release, a channel or a key set that keeps the rules of its format, so that
// nobody signs anything else. It checks no signature.
func Check(file []byte) error {
	n, err := splitNote(file)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(n.Text, Channels.firstLine()):
		_, err = DecodeChannel(file)
	case strings.HasPrefix(n.Text, KeySets.firstLine()):
		var s KeySet
		if err = decodeUnsigned(KeySets, file, &s); err == nil {
			err = s.Check()
		}
	default:
		_, err = DecodeRelease(file)
	}
	return err
}

func decodeUnsigned(kind Kind, file []byte, v any) error {
	n, err := splitNote(file)
	if err != nil {
		return err
	}
	return decodeBody(kind, n.Text, v)
}

// OpenRelease verifies and decodes a release.
func (k *Keys) OpenRelease(file []byte) (*Release, error) {
	var r Release
	if err := k.open(Releases, file, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// OpenChannel verifies and decodes a channel.
func (k *Keys) OpenChannel(file []byte) (*Channel, error) {
	var c Channel
	if err := k.open(Channels, file, &c); err != nil {
		return nil, err
	}
	return &c, nil
}
