package learn

import (
	"os"
	"testing"

	"cairn/store/locate"
)

func TestParsePlace(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"a.img", "a.caibx", "k=v", "k=v=w.caibx", "x#1.img"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ text, path, index string }{
		{"", "", ""},
		{"a.img", "a.img", ""},
		{"absent.img", "absent.img", ""},
		{"a.img=a.caibx", "a.img", "a.caibx"},
		{"a.img=", "a.img", ""},
		{"a.img=absent", "a.img", "absent"},
		{"absent=a.caibx", "absent", "a.caibx"},
		{"k=v", "k=v", ""},
		{"k=v=a.caibx", "k=v", "a.caibx"},
		{"k=v=k=v=w.caibx", "k=v", "k=v=w.caibx"},
		{"a.img=b=c", "a.img", "b=c"},
		{"a=b=a.caibx", "a=b", "a.caibx"},
		{"a=b=c", "a=b", "c"},
		{`a\=b=c`, "a=b", "c"},
		{`a\=b`, "a=b", ""},
		{`k\=v=k\=v\=w.caibx`, "k=v", "k=v=w.caibx"},
		{"@root=b=c", "@root", "b=c"},
		{"a.img#p=b=c", "a.img#p=b", "c"},
		{`x\#1.img=b=c`, `x\#1.img`, "b=c"},
		{"PARTLABEL=root-a", "PARTLABEL=root-a", ""},
		{"PARTLABEL=root-a=a.caibx", "PARTLABEL=root-a", "a.caibx"},
		{`PARTLABEL=a\=b`, "PARTLABEL=a=b", ""},
		{"PARTUUID=1-2=b", "PARTUUID=1-2", "b"},
		{"a=b=https://host/x.caibx?a=b", "a=b", "https://host/x.caibx?a=b"},
		{"a.img=-", "a.img", "-"},
		{"a.img=/dev/stdin", "a.img", "-"},
	} {
		place, err := ParsePlace(test.text)
		index := ""
		if !place.Index.IsZero() {
			index = place.Index.String()
		}
		want := test.index
		if locate.IsURL(want) { // a message about a location leaves its query out
			want, index = "", ""
		}
		if err != nil || place.Path != test.path || index != want || place.Index.IsStream() != (test.index == "-") {
			t.Errorf("ParsePlace(%q) = %q, %v, %v; want %q, %q", test.text, place.Path, place.Index, err, test.path, test.index)
		}
	}
	for _, text := range []string{"https://host/a.img", "a.img=gopher://host/x", "a.img=http:///x"} {
		if place, err := ParsePlace(text); err == nil {
			t.Errorf("ParsePlace(%q) = %+v, want an error", text, place)
		}
	}
}
