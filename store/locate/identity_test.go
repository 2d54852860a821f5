package locate

import "testing"

func TestSplitHost(t *testing.T) {
	for text, want := range map[string][2]string{
		"token":                        {"", "token"},
		"/run/token":                   {"", "/run/token"},
		"store.example.com=/run/token": {"store.example.com", "/run/token"},
		"store.example.com:8443=a=b":   {"store.example.com:8443", "a=b"},
		"[::1]:8443=token":             {"[::1]:8443", "token"},
		"./a=b":                        {"", "./a=b"},
		"/run/a=b":                     {"", "/run/a=b"},
		"=token":                       {"", "token"},
	} {
		if host, file := splitHost(text); host != want[0] || file != want[1] {
			t.Errorf("splitHost(%q) = %q, %q; want %q", text, host, file, want)
		}
	}
}
