package trust_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"cairn/blob/trust"
	"cairn/internal/test/need"
)

// keyPair is a key for tests.
type keyPair struct {
	note.Signer
	public string
}

func newKey(t testing.TB, name string) keyPair {
	t.Helper()
	private, public, err := trust.Generate(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := trust.PublicOf(private); err != nil || got != public {
		t.Fatalf("PublicOf = %s, %v, want %s", got, err, public)
	}
	return keyPair{s, public}
}

// trusting returns keys with the lines of a public key file.
func trusting(t testing.TB, lines ...string) *trust.Keys {
	t.Helper()
	k := trust.NewKeys()
	if err := k.AddPublic(strings.Join(lines, "\n") + "\n"); err != nil {
		t.Fatal(err)
	}
	return k
}

func newRelease() *trust.Release {
	return &trust.Release{
		Name: "example.com/os", Version: "2026.12", Serial: 42, MinSerial: 40, Compatible: []string{"box"},
		Created: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		Images: []trust.Image{
			{Role: "root", Size: 4096, Index: trust.File{Path: "42/root.caibx", Size: 144, SHA256: trust.Sum{1}}},
			{Role: "uki", Order: 9, Target: trust.TargetFile, Name: "os.efi", Index: trust.File{Path: "42/uki.caibx", Size: 144, SHA256: trust.Sum{2}}},
		},
	}
}

func newChannel() *trust.Channel {
	return &trust.Channel{
		Name: "example.com/os", Channel: "stable", Serial: 7, NotAfter: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
		Release: trust.Pointer{Serial: 42, File: trust.File{Path: "42.release", Size: 900, SHA256: trust.Sum{3}}},
		Rollout: trust.Rollout{Percent: 10, Seed: "42"},
	}
}

// sign returns the signed note of a text.
func sign(t testing.TB, text []byte, err error, keys ...keyPair) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k)
	}
	file, err := trust.Sign(text, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// TestTrust: a note is opened if keys have signed it that may sign its kind, and else refused.
func TestTrust(t *testing.T) {
	releases, channels, both, stranger := newKey(t, "example.com/r"), newKey(t, "example.com/c"), newKey(t, "example.com/b"), newKey(t, "example.com/s")
	impostor := newKey(t, "example.com/r") // the same name
	k := trusting(t, "# keys", "release "+releases.public, "channel "+channels.public, "", both.public)
	text, err := newRelease().Encode()
	signed := sign(t, text, err, releases)
	for name, c := range map[string]struct {
		file []byte
		ok   bool
	}{
		"by the key":               {signed, true},
		"by a key for all":         {sign(t, text, nil, both), true},
		"by a stranger too":        {sign(t, text, nil, releases, stranger), true},
		"by a stranger":            {sign(t, text, nil, stranger), false},
		"by the channel key":       {sign(t, text, nil, channels), false},
		"by a key of the name":     {sign(t, text, nil, impostor), false},
		"unsigned":                 {text, false},
		"empty":                    {nil, false},
		"changed":                  {bytes.Replace(signed, []byte(`"serial": 42`), []byte(`"serial": 43`), 1), false},
		"cut":                      {signed[:len(signed)-9], false},
		"with a line behind":       {append(bytes.Clone(signed), "more\n"...), false},
		"too large":                {append(bytes.Repeat([]byte(" "), trust.MaxSize), signed...), false},
		"with a tab":               {sign2(t, append(text[:len(text)-2:len(text)-2], "\t}\n"...), releases), false},
		"a spoilt known signature": {spoil(t, sign(t, text, nil, releases, both), both), false},
	} {
		r, err := k.OpenRelease(c.file)
		switch {
		case c.ok && (err != nil || r.Serial != 42 || r.Images[1].Name != "os.efi" || r.Images[0].Index.SHA256 != trust.Sum{1}):
			t.Errorf("%s: %+v, %v", name, r, err)
		case !c.ok && !errors.Is(err, trust.ErrUntrusted):
			t.Errorf("%s: %+v, %v, want ErrUntrusted", name, r, err)
		}
	}
	ctext, err := newChannel().Encode()
	if c, err := k.OpenChannel(sign(t, ctext, err, channels)); err != nil || c.Serial != 7 || c.Rollout.Percent != 10 {
		t.Errorf("a channel: %+v, %v", c, err)
	}
	if _, err := k.OpenChannel(sign(t, ctext, nil, releases)); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a channel by the release key: %v", err)
	}
	if _, err := k.OpenChannel(sign(t, text, nil, both)); !errors.Is(err, trust.ErrInvalid) {
		t.Errorf("a release in place of a channel: %v", err)
	}
	if _, err := k.OpenRelease(sign(t, ctext, nil, both)); !errors.Is(err, trust.ErrInvalid) {
		t.Errorf("a channel in place of a release: %v", err)
	}
	if _, err := trust.NewKeys().OpenRelease(signed); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("without keys: %v", err)
	}
}

// sign2 signs a text that trust.Sign may refuse, and returns it unsigned then.
func sign2(t *testing.T, text []byte, k keyPair) []byte {
	t.Helper()
	file, err := trust.Sign(text, k)
	if err != nil {
		return text
	}
	return file
}

// spoil changes the signature of a key.
func spoil(t *testing.T, file []byte, k keyPair) []byte {
	t.Helper()
	start := bytes.Index(file, []byte("— "+k.Name()+" "))
	if start < 0 {
		t.Fatal("the key has not signed it")
	}
	at := start + bytes.IndexByte(file[start:], '\n') - 10
	file = bytes.Clone(file)
	file[at] ^= 3
	return file
}

// TestSignedMistakes: what a publisher signs by mistake is refused all the same.
func TestSignedMistakes(t *testing.T) {
	key := newKey(t, "example.com/k")
	k := trusting(t, key.public)
	text, err := newRelease().Encode()
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, text_ string) []byte {
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("the release has no %q", old)
		}
		return bytes.Replace(text, []byte(old), []byte(text_), 1)
	}
	for name, body := range map[string][]byte{
		"a later format":        replace("cairn release 1", "cairn release 2"),
		"no type":               replace("cairn release 1\n", ""),
		"a key twice":           replace(`"serial": 42,`, `"serial": 42, "serial": 43,`),
		"a key twice, in cases": replace(`"serial": 42,`, `"serial": 42, "Serial": 43,`),
		"a key in other cases":  replace(`"serial": 42,`, `"Serial": 42,`),
		"a key with a long s":   replace(`"serial": 42,`, `"ſerial": 42,`),
		"a serial at the end":   replace(`"serial": 42,`, `"serial": 9007199254740993,`),
		"a control character":   replace(`2026.12`, "2026\u009b12"),
		"a key twice, deep":     replace(`"path": "42/root.caibx"`, `"path": "42/x.caibx", "path": "42/root.caibx"`),
		"more behind":           append(bytes.Clone(text), "{}\n"...),
		"no JSON":               []byte("cairn release 1\nhello\n"),
		"deep":                  []byte("cairn release 1\n" + strings.Repeat("[", 10_000) + "\n"),
		"half":                  text[:len(text)/2],
		"no serial":             replace(`"serial": 42`, `"serial": 0`),
		"a negative serial":     replace(`"serial": 42`, `"serial": -42`),
		"a floor above":         replace(`"min_serial": 40`, `"min_serial": 43`),
		"a broken number":       replace(`"serial": 42`, `"serial": 4.5`),
		"a huge number":         replace(`"serial": 42`, `"serial": 99999999999999999999`),
		"no name":               replace(`"example.com/os"`, `""`),
		"a path above":          replace(`42/root.caibx`, `../root.caibx`),
		"a path above, inside":  replace(`42/root.caibx`, `42/../../root.caibx`),
		"an absolute path":      replace(`42/root.caibx`, `/etc/shadow`),
		"a URL":                 replace(`42/root.caibx`, `https://example.com/root.caibx`),
		"a query":               replace(`42/root.caibx`, `42/root.caibx?x`),
		"the same role":         replace(`"role": "uki"`, `"role": "root"`),
		"a file above":          replace(`"os.efi"`, `"../os.efi"`),
		"a file without name":   replace(`"os.efi"`, `""`),
		"an unknown target":     replace(`"target": "file"`, `"target": "disk"`),
		"no index":              replace(`"size": 144`, `"size": 0`),
		"a short digest":        replace(`0100000000`, `01000000`),
		"no hardware":           replace(`"box"`, ``),
		"a line in a version":   replace(`2026.12`, `2026\n12`),
	} {
		file, err := trust.Sign(body, key)
		if err != nil {
			continue // such a text cannot be signed at all
		}
		if r, err := k.OpenRelease(file); !errors.Is(err, trust.ErrInvalid) {
			t.Errorf("%s: %+v, %v, want ErrInvalid", name, r, err)
		}
		if err := trust.Check(file); !errors.Is(err, trust.ErrInvalid) {
			t.Errorf("%s: Check = %v, want ErrInvalid", name, err)
		}
	}
	if r, err := k.OpenRelease(sign(t, replace(`"serial": 42,`, `"serial": 42, "later": {"a": 1},`), nil, key)); err != nil || r.Serial != 42 {
		t.Errorf("a field of a later version: %+v, %v", r, err)
	}
}

// TestKeySets: a key set needs signatures of enough of its own keys and of those of the set before. A release needs as many
// as the set says.
func TestKeySets(t *testing.T) {
	var all []keyPair
	for i := range 6 {
		all = append(all, newKey(t, fmt.Sprintf("example.com/%d", i)))
	}
	quorum := func(n int, of ...int) trust.Quorum {
		q := trust.Quorum{Threshold: n}
		for _, i := range of {
			q.Keys = append(q.Keys, all[i].public)
		}
		return q
	}
	set := func(serial int64, releases, keys trust.Quorum) *trust.KeySet {
		return &trust.KeySet{Name: "example.com/os", Serial: serial, Created: time.Unix(1, 0).UTC(), Releases: releases, Channels: quorum(1, 5), KeySets: keys}
	}
	signedBy := func(s *trust.KeySet, by ...int) []byte {
		text, err := s.Encode()
		var keys []keyPair
		for _, i := range by {
			keys = append(keys, all[i])
		}
		return sign(t, text, err, keys...)
	}
	first, err := trust.OpenFirstKeySet(signedBy(set(1, quorum(2, 0, 1, 2), quorum(2, 0, 1, 2)), 0, 2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenFirstKeySet(signedBy(set(1, quorum(2, 0, 1, 2), quorum(2, 0, 1, 2)), 0)); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a set that one of two keys has signed: %v", err)
	}
	next := set(2, quorum(1, 3), quorum(2, 2, 3, 4))
	for name, c := range map[string]struct {
		file []byte
		ok   bool
	}{
		"both sets":       {signedBy(next, 0, 1, 3, 4), true},
		"a key in both":   {signedBy(next, 0, 2, 3), true},
		"the old one":     {signedBy(next, 0, 1), false},
		"the new one":     {signedBy(next, 3, 4), false},
		"one of the old":  {signedBy(next, 0, 3, 4), false},
		"a later one":     {signedBy(set(3, quorum(1, 3), quorum(2, 2, 3, 4)), 0, 1, 3, 4), false},
		"the same again":  {signedBy(set(1, quorum(2, 0, 1, 2), quorum(2, 0, 1, 2)), 0, 1), false},
		"another product": {signedBy(func() *trust.KeySet { s := *next; s.Name = "example.com/x"; return &s }(), 0, 1, 3, 4), false},
	} {
		if got, err := first.OpenNextKeySet(c.file); c.ok != (err == nil) || err != nil && !isRefused(err) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	k := trust.NewKeys()
	if err := k.AddSet(first); err != nil {
		t.Fatal(err)
	}
	text, err := newRelease().Encode()
	if _, err := k.OpenRelease(sign(t, text, err, all[0])); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a release with one of two signatures: %v", err)
	}
	twice := sign(t, text, nil, all[0])
	twice = append(twice, twice[bytes.LastIndexByte(twice[:len(twice)-1], '\n')+1:]...)
	if _, err := k.OpenRelease(twice); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a release with the same signature twice: %v", err)
	}
	if _, err := k.OpenRelease(sign(t, text, nil, all[0], all[1])); err != nil {
		t.Error(err)
	}
	if _, err := k.OpenRelease(sign(t, text, nil, all[0], all[5])); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a release that the channel key has signed too: %v", err)
	}
	other := newRelease()
	other.Name = "example.com/x"
	text, err = other.Encode()
	if _, err := k.OpenRelease(sign(t, text, err, all[0], all[1])); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("a release of a product that the set is not about: %v", err)
	}
	// One key under two names is one key.
	name, key, _ := strings.Cut(all[0].public, "+")
	_, key, _ = strings.Cut(key, "+")
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	alias, err := note.NewEd25519VerifierKey(name+"-too", raw[1:])
	if err != nil {
		t.Fatal(err)
	}
	double := set(1, trust.Quorum{Threshold: 2, Keys: []string{all[0].public, alias}}, quorum(1, 0))
	if _, err := double.Encode(); !errors.Is(err, trust.ErrInvalid) {
		t.Errorf("a key under two names: %v", err)
	}
	garbage := set(1, trust.Quorum{Threshold: 1, Keys: []string{"garbage"}}, quorum(1, 0))
	if err := trust.NewKeys().AddSet(garbage); !errors.Is(err, trust.ErrInvalid) {
		t.Errorf("a set with a broken key: %v", err)
	}
	for name, s := range map[string]*trust.KeySet{
		"a threshold above": set(1, quorum(2, 0), quorum(1, 0)), "none": set(1, quorum(0, 0), quorum(1, 0)),
		"no keys": set(1, quorum(1), quorum(1, 0)), "a key twice": set(1, quorum(2, 0, 0), quorum(1, 0)),
	} {
		if _, err := s.Encode(); !errors.Is(err, trust.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRotation: of the key sets of a product in all directories, the one with the largest serial counts, so that a key which
// it leaves out is not trusted any more. The fingerprint of the keys changes with them.
func TestRotation(t *testing.T) {
	stolen, fresh := newKey(t, "example.com/stolen"), newKey(t, "example.com/fresh")
	set := func(serial int64, created int64, k keyPair, signers ...keyPair) []byte {
		q := trust.Quorum{Threshold: 1, Keys: []string{k.public}}
		s := &trust.KeySet{Name: "example.com/os", Serial: serial, Created: time.Unix(created, 0).UTC(), Releases: q, Channels: q, KeySets: q}
		text, err := s.Encode()
		return sign(t, text, err, signers...)
	}
	image, owner := t.TempDir(), t.TempDir()
	write := func(dir, name string, file []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), file, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := newRelease().Encode()
	opens := func(k *trust.Keys, by keyPair) bool {
		_, err := k.OpenRelease(sign(t, text, err, by))
		return err == nil
	}
	load := func() *trust.Keys {
		t.Helper()
		k, err := trust.LoadKeys(image, owner)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write(image, "os.keys", set(1, 1, stolen, stolen))
	before := load()
	if !opens(before, stolen) || opens(before, fresh) {
		t.Error("the first set does not count")
	}
	write(owner, "os.keys", set(2, 1, fresh, stolen, fresh))
	after := load()
	if opens(after, stolen) || !opens(after, fresh) {
		t.Error("the second set does not replace the first one")
	}
	if before.Fingerprint(trust.Channels) == after.Fingerprint(trust.Channels) {
		t.Error("both sets have the same fingerprint")
	}
	write(image, "os.keys", set(2, 1, fresh, stolen, fresh))
	if load().Fingerprint(trust.Channels) != after.Fingerprint(trust.Channels) {
		t.Error("the same set twice has another fingerprint")
	}
	write(image, "os.keys", set(2, 7, stolen, stolen, fresh))
	if _, err := trust.LoadKeys(image, owner); !errors.Is(err, trust.ErrInvalid) {
		t.Errorf("two different sets with the same serial: %v", err)
	}
}

func isRefused(err error) bool {
	_, refused := errors.AsType[*trust.RefusedError](err)
	return refused || errors.Is(err, trust.ErrUntrusted)
}

// TestLoadKeys: keys are read from directories that only their owner may write. What cannot be read is an error.
func TestLoadKeys(t *testing.T) {
	dir, absent := t.TempDir(), filepath.Join(t.TempDir(), "none")
	if k, err := trust.LoadKeys(absent, dir); err != nil || !k.IsEmpty() {
		t.Errorf("no keys: %v", err)
	}
	key := newKey(t, "example.com/k")
	write := func(name, text string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("os.pub", key.public+"\n", 0o644)
	write("README", "no key", 0o666)
	text, err := newRelease().Encode()
	file := sign(t, text, err, key)
	if k, err := trust.LoadKeys(absent, dir); err != nil {
		t.Error(err)
	} else if _, err := k.OpenRelease(file); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(){
		"writable by others": func() { write("a.pub", key.public+"\n", 0o666) },
		"no key":             func() { write("a.pub", "# none\n", 0o644) },
		"garbage":            func() { write("a.pub", "release,everything "+key.public+"\n", 0o644) },
		"two keys in a line": func() { write("a.pub", "release "+key.public+" "+key.public+"\n", 0o644) },
		"no key set":         func() { write("a.keys", "cairn keys 1\n{}\n", 0o644) },
		"a link":             func() { _ = os.Symlink("/etc/hostname", filepath.Join(dir, "a.pub")) },
	} {
		spoil()
		if _, err := trust.LoadKeys(dir); err == nil {
			t.Errorf("%s: LoadKeys succeeds", name)
		}
		_ = os.Remove(filepath.Join(dir, "a.pub"))
		_ = os.Remove(filepath.Join(dir, "a.keys"))
	}
	if _, err := trust.LoadKeys(dir); err != nil {
		t.Error(err)
	}
}

// TestReadSigner: a private key that others may read is refused.
func TestReadSigner(t *testing.T) {
	private, public, err := trust.Generate("example.com/k")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false} {
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(private+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := trust.ReadSigner(path); ok != (err == nil) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if err := os.WriteFile(path, []byte(public), 0o600); err == nil {
		_ = os.Chmod(path, 0o600)
	}
	if _, err := trust.ReadSigner(path); err == nil || strings.Contains(err.Error(), private) {
		t.Errorf("a public key in place of a private one: %v", err)
	}
}

// TestOpenSSL: a release that openssl alone has signed, as docs/format.md says, is trusted. The same works with any program
// that signs with Ed25519 (--sign-command).
func TestOpenSSL(t *testing.T) {
	openssl := need.Tool(t, "openssl")
	dir := t.TempDir()
	text, err := newRelease().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	script := `set -e
` + openssl + ` genpkey -algorithm ed25519 -out key.pem
` + openssl + ` pkey -in key.pem -pubout -out public.pem
NAME=example.com/os
# the 32 bytes of the public key, behind the byte 1 for Ed25519
{ printf '\001'; openssl pkey -in key.pem -pubout -outform DER | tail -c 32; } >public.bin
# the first 4 bytes of a SHA-256 of the name and the key
{ printf '%s\n' "$NAME"; cat public.bin; } | openssl dgst -sha256 -binary | head -c 4 >hash.bin
openssl pkeyutl -sign -rawin -inkey key.pem -in text -out signature.bin
{ cat text; printf '\n— %s ' "$NAME"; cat hash.bin signature.bin | openssl base64 -A; echo; } >signed.release
echo "$NAME+$(od -An -tx1 hash.bin | tr -d ' \n')+$(openssl base64 -A -in public.bin)" >key.pub
`
	c := exec.Command("bash", "-c", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	read := func(name string) []byte {
		file, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	public := strings.TrimSpace(string(read("key.pub")))
	if r, err := trusting(t, public).OpenRelease(read("signed.release")); err != nil || r.Serial != 42 {
		t.Errorf("%+v, %v", r, err)
	}
	if got, err := trust.PublicOfPEM("example.com/os", read("public.pem")); err != nil || got != public {
		t.Errorf("PublicOfPEM = %s, %v, want %s", got, err, public)
	}
	sign := []string{"bash", "-c", "cat >m && openssl pkeyutl -sign -rawin -inkey " + filepath.Join(dir, "key.pem") + " -in m"}
	t.Chdir(dir)
	signer, err := trust.NewCommandSigner(t.Context(), public, sign, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	file, err := trust.Sign(text, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trusting(t, public).OpenRelease(file); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"exit 1", "cat", "head -c 64 /dev/zero", "true"} {
		signer, err := trust.NewCommandSigner(t.Context(), public, []string{"bash", "-c", bad}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := trust.Sign(text, signer); err == nil {
			t.Errorf("a program that does %q signs", bad)
		}
	}
}

// FuzzOpen: whatever bytes are signed, a release or channel that opens keeps the rules of the format, and opens to the same
// again after encoding.
func FuzzOpen(f *testing.F) {
	key := newKey(f, "example.com/k")
	k := trusting(f, key.public)
	for _, encode := range []func() ([]byte, error){newRelease().Encode, newChannel().Encode} {
		text, err := encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(sign(f, text, nil, key))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = trust.DecodeRelease(text)
		_, _ = trust.DecodeChannel(text)
		_, _ = trust.OpenFirstKeySet(text)
		_ = trust.Signers(text)
		if _, err := k.OpenRelease(text); err == nil && !bytes.Contains(text, []byte("— example.com/k ")) {
			t.Fatal("an unsigned release opens")
		}
		file, err := trust.Sign(text, key)
		if err != nil {
			return
		}
		r, err := k.OpenRelease(file)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("a release that opens cannot be encoded: %v", err)
		}
		if s, err := trust.DecodeRelease(again); err != nil || s.Serial != r.Serial || len(s.Images) != len(r.Images) {
			t.Fatalf("%+v, %v", s, err)
		}
	})
}
