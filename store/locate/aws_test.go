package locate

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"cairn/internal/rotate"
)

// TestPipedAWSFiles: a file of AWS's that is a pipe can be read by several buckets. Other files keep their names.
func TestPipedAWSFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("[default]\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	file, absent := filepath.Join(t.TempDir(), "credentials"), filepath.Join(t.TempDir(), "absent")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", fmt.Sprintf("/dev/fd/%d", r.Fd()))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	t.Setenv("AWS_CA_BUNDLE", absent)
	if _, err := (Identity{}).Access(new(rotate.Reader)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if text, err := os.ReadFile(os.Getenv("AWS_CONFIG_FILE")); err != nil || string(text) != "[default]\n" {
			t.Errorf("the pipe has the text %q, %v", text, err)
		}
	}
	if got := os.Getenv("AWS_SHARED_CREDENTIALS_FILE"); got != file {
		t.Errorf("a regular file is named %s", got)
	}
	if got := os.Getenv("AWS_CA_BUNDLE"); got != absent {
		t.Errorf("an absent file is named %s", got)
	}
}
