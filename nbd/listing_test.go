package nbd_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

func manyExports(n int) []*nbd.Export {
	device := newLazy(data(4 * kib))
	var all []*nbd.Export
	for i := range n {
		name := fmt.Sprintf("v%04d", i)
		all = append(all, &nbd.Export{Name: name, Canonical: name + "@1234", Device: device, MultiConn: true})
	}
	return all
}

// TestListOfMany: clients that list exports request information about each, and show their listed
// names.
func TestListOfMany(t *testing.T) {
	r := startServer(t, &nbd.Server{}, manyExports(2000)...)
	for _, tc := range []struct {
		name, export string
		args         []string
	}{
		{"nbdinfo", `(?m)^export="v\d{4}":$`, []string{"--list", r.uri("")}},
		{"nbdinfo", `"export-name": "v\d{4}"`, []string{"--list", "--json", r.uri("")}},
		{"qemu-nbd", `(?m)^ export: 'v\d{4}'$`, []string{"-L", "-k", r.socket}},
	} {
		t.Run(strings.Join([]string{tc.name, tc.args[0], tc.args[1]}, " "), func(t *testing.T) {
			out := mustRun(t, tc.name, tc.args...)
			if n := len(regexp.MustCompile(tc.export).FindAllString(out, -1)); n != 2000 {
				t.Errorf("%d of 2000 exports are listed:\n%.1000s", n, out)
			}
			if n := strings.Count(out, "base:allocation"); n < 2000 {
				t.Errorf("the contexts of %d of 2000 exports are listed", n)
			}
		})
	}
}

// TestListedNames: INFO returns the canonical name. A client that has received the list gets the
// listed name instead.
func TestListedNames(t *testing.T) {
	r := startServer(t, &nbd.Server{}, twoExports()...)
	info := func(c *nbdtest.Client, name, want string) {
		t.Helper()
		if got, err := c.Info(name); err != nil || got.Name != want {
			t.Errorf("INFO of %q is about %q, %v, want %q", name, got.Name, err, want)
		}
	}
	c := r.dialClient(t)
	info(c, "one", "one@1234")
	if _, err := c.List(); err != nil {
		t.Fatal(err)
	}
	info(c, "one", "one")
	info(c, "one@1234", "one@1234")
	if got, err := c.Go("one"); err != nil || got.Name != "one@1234" {
		t.Errorf("GO of one is about %q, %v", got.Name, err)
	}
}

// TestListIsNoLicence: a list raises the limit of options about its exports, and no other limit.
func TestListIsNoLicence(t *testing.T) {
	r := startServer(t, &nbd.Server{}, manyExports(100)...)
	ask := map[string]func(c *nbdtest.Client) error{
		"lists":              func(c *nbdtest.Client) error { _, err := c.List(); return err },
		"structured replies": func(c *nbdtest.Client) error { return c.StructuredReplies() },
		"one export": func(c *nbdtest.Client) error {
			_, err := c.Info("v0000")
			return err
		},
		"an export that is not there": func(c *nbdtest.Client) error {
			_, err := c.Info("absent")
			if e, refused := errors.AsType[*nbdtest.OptionError](err); refused && e.Type == nbdtest.RepErrUnknown {
				return nil
			}
			return err
		},
	}
	for what, most := range map[string]int{"lists": 32, "structured replies": 32, "one export": 4*100 + 32, "an export that is not there": 4*100 + 32} {
		c := r.dialClient(t)
		if _, err := c.List(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; n <= most; n++ {
			if ask[what](c) != nil {
				break
			}
		}
		if n > most || n < most/2 {
			t.Errorf("%s: %d times in a handshake, want at most %d", what, n, most)
		}
	}
}
