package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestDocumentedTimeouts: the timeouts in docs/vms.md are the defaults, and its clients wait longer than the server.
func TestDocumentedTimeouts(t *testing.T) {
	text, err := os.ReadFile("../../docs/vms.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	stall := defaultDuration(t, newServe(), "stall-timeout")
	for _, row := range []string{
		fmt.Sprintf("then the read fails with EIO | `--stall-timeout` | %v |", stall),
		fmt.Sprintf("| the other commands | the same | `--patience` | %v |", defaultDuration(t, newAssemble(), "patience")),
	} {
		if !strings.Contains(doc, row) {
			t.Errorf("docs/vms.md has no row %q", row)
		}
	}
	kernel := parseSeconds(t, doc, `nbd-client .* -t (\d+)`)
	if kernel <= stall || !strings.Contains(doc, fmt.Sprintf("`nbd-client -t` | %v |", kernel)) {
		t.Errorf("docs/vms.md has nbd-client wait for %v, cairn serve for %v", kernel, stall)
	}
	away := parseSeconds(t, doc, `reconnect-delay=(\d+)`)
	stop := parseSeconds(t, doc, "`TimeoutStopSec=` \\| (\\d+)s")
	if away <= stop || !strings.Contains(doc, fmt.Sprintf("`open-timeout=` | %.0fs |", away.Seconds())) {
		t.Errorf("docs/vms.md has qemu wait for %v, while a stop may take %v", away, stop)
	}
}

func defaultDuration(t *testing.T, c *cobra.Command, flag string) time.Duration {
	t.Helper()
	d, err := c.Flags().GetDuration(flag)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// parseSeconds returns the number that all matches of the pattern in the document contain.
func parseSeconds(t *testing.T, doc, pattern string) time.Duration {
	t.Helper()
	all := regexp.MustCompile(pattern).FindAllStringSubmatch(doc, -1)
	if len(all) == 0 {
		t.Fatalf("docs/vms.md has no %s", pattern)
	}
	for _, match := range all {
		if match[1] != all[0][1] {
			t.Errorf("docs/vms.md has both %q and %q", match[0], all[0][0])
		}
	}
	n, err := strconv.Atoi(all[0][1])
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(n) * time.Second
}
