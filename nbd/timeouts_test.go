package nbd

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestServerTimeoutsAreDocumented: docs/vms.md has the defaults.
func TestServerTimeoutsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/vms.md")
	if err != nil {
		t.Fatal(err)
	}
	var s Server
	for _, row := range []string{
		fmt.Sprintf("until it has chosen an export | – | %v |", s.handshakeTimeout()),
		fmt.Sprintf("to acknowledge a reply or a keepalive probe (TCP) | – | %v |", s.ackTimeout()),
		fmt.Sprintf("reads under way, when it is to end | – | %v |", s.drainTimeout()),
	} {
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/vms.md has no row %q", row)
		}
	}
}
