package confine

import (
	"os"
	"os/user"
	"strings"
	"testing"
)

// TestLookupUser: users and groups are found by name; absent ones are named.
func TestLookupUser(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Skip(err)
	}
	for text, want := range map[string]string{
		me.Username: "", me.Username + ":" + group.Name: "",
		"no-such-user": `no user "no-such-user"`, me.Username + ":no-such-group": `no group "no-such-group"`,
	} {
		u, err := LookupUser(text)
		if want == "" && (err != nil || u.UID != os.Getuid()) {
			t.Errorf("LookupUser(%q) = %+v, %v", text, u, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("LookupUser(%q) = %v, want %s", text, err, want)
		}
	}
}
