package nbd_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

func twoExports() []*nbd.Export {
	first := newLazy(nbd.Extent{Length: 64 * kib})
	return []*nbd.Export{
		{Name: "one", Description: "the first", Canonical: "one@1234", Device: first, MultiConn: true},
		{Name: "two", Device: &ram{data: make([]byte, 8*kib+1)}},
	}
}

func TestList(t *testing.T) {
	c := startServer(t, &nbd.Server{}, twoExports()...).dialClient(t)
	got, err := c.List()
	want := []nbdtest.Listing{{Name: "one", Description: "the first"}, {Name: "two"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("List: %v\n%s", err, diff)
	}
	if err := c.Abort(); err != nil {
		t.Error(err)
	}
}

func TestInfoAndGo(t *testing.T) {
	const one = nbdtest.FlagHasFlags | nbdtest.FlagReadOnly | nbdtest.FlagMultiConn | nbdtest.FlagCache
	const two = nbdtest.FlagHasFlags | nbdtest.FlagFlush | nbdtest.FlagFUA | nbdtest.FlagWriteZeroes
	info := func(size uint64, flags uint16, name, description string) nbdtest.Info {
		return nbdtest.Info{Size: size, Flags: flags, Name: name, Description: description,
			Min: 1, Preferred: 4096, Max: 32 * mib}
	}
	cases := []struct {
		name       string
		structured bool
		want       nbdtest.Info
	}{
		{"one", false, info(64*kib, one, "one@1234", "the first")},
		{"one@1234", false, info(64*kib, one, "one@1234", "the first")},
		{"", true, info(64*kib, one|nbdtest.FlagDF, "one@1234", "the first")},
		{"two", true, info(8*kib+1, two|nbdtest.FlagDF, "two", "")},
	}
	r := startServer(t, &nbd.Server{}, twoExports()...)
	for _, tc := range cases {
		c := r.dialClient(t)
		if tc.structured {
			if err := c.StructuredReplies(); err != nil {
				t.Fatal(err)
			}
		}
		for _, ask := range []func(string) (nbdtest.Info, error){c.Info, c.Go} {
			got, err := ask(tc.name)
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("INFO, then GO of %q: %v\n%s", tc.name, err, diff)
			}
		}
		if err := c.Disconnect(); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnlyExportOfWriter(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: &ram{data: make([]byte, 4*kib)}, ReadOnly: true})
	c := r.dialClient(t)
	info, err := c.Go("x")
	if err != nil || info.Flags != nbdtest.FlagHasFlags|nbdtest.FlagReadOnly {
		t.Errorf("flags = %#x, %v", info.Flags, err)
	}
	if got := errorCode(t, c.Write(t.Context(), make([]byte, 512), 0, 0)); got != nbdtest.EPERM {
		t.Errorf("write = %d, want EPERM", got)
	}
}

// A refused name must not select another export (go-nbd does that).
func TestUnknownExportAfterKnown(t *testing.T) {
	c := startServer(t, &nbd.Server{}, twoExports()...).dialClient(t)
	if _, err := c.Info("one"); err != nil {
		t.Fatal(err)
	}
	_, err := c.Go("three")
	if optionErrorType(t, err) != nbdtest.RepErrUnknown || !strings.Contains(err.Error(), `"three" (there is "one", "two")`) {
		t.Errorf("Go(three) = %v", err)
	}
	if _, err := c.Go("two"); err != nil {
		t.Error(err)
	}
}

// TestRefusedOptions sends invalid options. After each, the handshake must continue.
func TestRefusedOptions(t *testing.T) {
	u32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	name := func(s string) []byte { return nbdtest.AppendString(nil, s) }
	cases := []struct {
		what string
		id   uint32
		data []byte
		want uint32
	}{
		{"list with data", nbdtest.OptList, []byte{1}, nbdtest.RepErrInvalid},
		{"starttls", nbdtest.OptStartTLS, nil, nbdtest.RepErrUnsup},
		{"extended headers", nbdtest.OptExtendedHeaders, nil, nbdtest.RepErrUnsup},
		{"unknown", 0xbadcafe, []byte("what?"), nbdtest.RepErrUnsup},
		{"structured replies with data", nbdtest.OptStructuredReply, []byte{1}, nbdtest.RepErrInvalid},
		{"info without data", nbdtest.OptInfo, nil, nbdtest.RepErrInvalid},
		{"info without count", nbdtest.OptInfo, name("one"), nbdtest.RepErrInvalid},
		{"info with more", nbdtest.OptInfo, append(name("one"), 0, 0, 0), nbdtest.RepErrInvalid},
		{"info with fewer requests", nbdtest.OptInfo, append(name("one"), 0, 2, 0, 0), nbdtest.RepErrInvalid},
		{"name of 3.75 GiB", nbdtest.OptGo, append(u32(0xf0000000), "one"...), nbdtest.RepErrInvalid},
		{"name of 4096", nbdtest.OptGo, append(name(strings.Repeat("x", 4096)), 0, 0), nbdtest.RepErrUnknown},
		{"name of 4097", nbdtest.OptGo, append(name(strings.Repeat("x", 4097)), 0, 0), nbdtest.RepErrTooBig},
		{"name with NUL", nbdtest.OptGo, append(name("one\x00"), 0, 0), nbdtest.RepErrUnknown},
		{"name that is not UTF-8", nbdtest.OptGo, append(name("\xff\xfe"), 0, 0), nbdtest.RepErrUnknown},
		{"64 KiB and a byte", nbdtest.OptGo, make([]byte, 64*kib+1), nbdtest.RepErrTooBig},
		{"1 MiB", 4711, make([]byte, mib), nbdtest.RepErrTooBig},
		{"contexts too early", nbdtest.OptSetMetaContext, append(name("one"), 0, 0, 0, 0), nbdtest.RepErrInvalid},
	}
	r := startServer(t, &nbd.Server{}, twoExports()...)
	for _, tc := range cases {
		c := r.dialClient(t)
		_, err := c.Option(tc.id, tc.data)
		if got := optionErrorType(t, err); got != tc.want {
			t.Errorf("%s: %v, want %#x", tc.what, err, tc.want)
		}
		if list, err := c.List(); err != nil || len(list) != 2 {
			t.Errorf("%s: then List = %v, %v", tc.what, list, err)
		}
	}
}

func TestMetaContexts(t *testing.T) {
	const base = "base:allocation"
	cases := []struct {
		what    string
		set     func(c *nbdtest.Client) error
		allowed bool
	}{
		{"set", func(c *nbdtest.Client) error { return setMetaContexts(c, "one", base) }, true},
		{"among unknown ones", func(c *nbdtest.Client) error { return setMetaContexts(c, "one", "x-y:z", base, "qemu:") }, true},
		{"another export", func(c *nbdtest.Client) error { return setMetaContexts(c, "two", base) }, false},
		{"unknown only", func(c *nbdtest.Client) error { return setMetaContexts(c, "one", "x-y:z") }, false},
		{"wildcard is for lists", func(c *nbdtest.Client) error { return setMetaContexts(c, "one", "base:") }, false},
		{"none", func(c *nbdtest.Client) error { return setMetaContexts(c, "one") }, false},
		{"replaced", func(c *nbdtest.Client) error {
			return errors.Join(setMetaContexts(c, "one", base), setMetaContexts(c, "one"))
		}, false},
		{"replaced by a failure", func(c *nbdtest.Client) error {
			err := setMetaContexts(c, "one", base)
			c.Option(nbdtest.OptSetMetaContext, []byte{1})
			return err
		}, false},
		{"replaced by one too big", func(c *nbdtest.Client) error {
			err := setMetaContexts(c, "one", base)
			c.Option(nbdtest.OptSetMetaContext, make([]byte, 70000))
			return err
		}, false},
	}
	r := startServer(t, &nbd.Server{}, twoExports()...)
	for _, tc := range cases {
		c := r.dialClient(t)
		if err := c.StructuredReplies(); err != nil {
			t.Fatal(err)
		}
		if err := tc.set(c); err != nil {
			t.Errorf("%s: %v", tc.what, err)
		}
		if _, err := c.Go("one"); err != nil {
			t.Fatal(err)
		}
		// The client drops its contexts as a server must, so this raw request checks only whether
		// it is allowed.
		_, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdBlockStatus, Length: 512})
		if got := errorCode(t, err) == 0; got != tc.allowed {
			t.Errorf("%s: block status = %v, want allowed = %v", tc.what, err, tc.allowed)
		}
	}
}

func setMetaContexts(c *nbdtest.Client, export string, queries ...string) error {
	_, err := c.SetMetaContexts(export, queries...)
	return err
}

func TestListMetaContexts(t *testing.T) {
	c := startServer(t, &nbd.Server{}, twoExports()...).dialClient(t)
	if err := c.StructuredReplies(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		queries []string
		want    int
	}{{nil, 1}, {[]string{"base:"}, 1}, {[]string{"base:allocation"}, 1}, {[]string{"qemu:"}, 0}} {
		got, err := c.ListMetaContexts("one", tc.queries...)
		if err != nil || len(got) != tc.want {
			t.Errorf("ListMetaContexts(%q) = %q, %v", tc.queries, got, err)
		}
	}
}

func TestExportName(t *testing.T) {
	r := startServer(t, &nbd.Server{}, twoExports()...)
	c := r.dialClient(t)
	info, err := c.ExportName("two")
	if err != nil || info.Size != 8*kib+1 {
		t.Errorf("ExportName = %+v, %v", info, err)
	}
	if err := c.Read(t.Context(), make([]byte, 100), 0); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"three", strings.Repeat("x", 4097), strings.Repeat("x", 70000)} {
		if _, err := r.dialClient(t).ExportName(name); !errors.Is(err, io.EOF) {
			t.Errorf("ExportName of %d bytes = %v, want the end", len(name), err)
		}
	}
}

func TestExportNameWithZeroes(t *testing.T) {
	conn := startServer(t, &nbd.Server{}, twoExports()...).dialRaw(t)
	conn.Write(append([]byte{0, 0, 0, 1}, nbdtest.OptionBytes(nbdtest.OptExportName, []byte("one"))...))
	conn.Write(nbdtest.RequestBytes(7, nbdtest.Request{Command: nbdtest.CmdRead, Length: 1}))
	p := make([]byte, 18+134+17) // greeting, size and flags and zeroes, one reply with a byte of data
	if _, err := io.ReadFull(conn, p); err != nil {
		t.Fatal(err)
	}
	if got := binary.BigEndian.Uint32(p[18+134:]); got != 0x67446698 {
		t.Errorf("behind the zeroes is %#x, want a reply", got)
	}
}

// The client receives the errors of Exports, and its connection continues.
func TestExportsFail(t *testing.T) {
	r := startServer(t, &nbd.Server{Exports: failing{}})
	c := r.dialClient(t)
	_, infoErr := c.Info("x")
	_, listErr := c.List()
	for _, err := range []error{infoErr, listErr} {
		if got := optionErrorType(t, err); got != nbdtest.RepErrPlatform || !strings.Contains(err.Error(), "disk on fire") {
			t.Errorf("refused with %v", err)
		}
	}
	if err := c.Abort(); err != nil {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Open(context.Context, string) (*nbd.Export, error) {
	return nil, errors.New("disk on fire")
}
func (failing) Describe(context.Context, string) (*nbd.Export, error) {
	return nil, errors.New("disk on fire")
}
func (failing) All(context.Context) ([]nbd.Listing, error) { return nil, errors.New("disk on fire") }

func TestNewStatic(t *testing.T) {
	d := &plain{}
	cases := []struct {
		what    string
		exports []*nbd.Export
		ok      bool
	}{
		{"none", nil, true},
		{"default", []*nbd.Export{{Device: d}}, true},
		{"two of a name", []*nbd.Export{{Name: "a", Device: d}, {Name: "a", Device: d}}, false},
		{"name is another's", []*nbd.Export{{Name: "a", Canonical: "b", Device: d}, {Name: "b", Device: d}}, false},
		{"long name", []*nbd.Export{{Name: strings.Repeat("x", 4097), Device: d}}, false},
		{"NUL", []*nbd.Export{{Name: "a\x00", Device: d}}, false},
		{"not UTF-8", []*nbd.Export{{Name: "a", Description: "\xff", Device: d}}, false},
	}
	for _, tc := range cases {
		if _, err := nbd.NewStatic(tc.exports...); (err == nil) != tc.ok {
			t.Errorf("%s: NewStatic = %v", tc.what, err)
		}
	}
}
