package e2e

import (
	"path/filepath"
	"testing"

	"cairn/internal/test/need"
	"cairn/store/storetest"
)

// TestS3: an image whose index and chunks are in S3 is assembled, verified and inspected. A missing bucket and
// rejected keys are reported.
func TestS3(t *testing.T) {
	need.Tool(t, "desync")
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	t.Setenv("AWS_ENDPOINT_URL", "http://"+server.Host) // for s3:// locations
	p := small(t)
	must(t, "desync", "make", "-s", server.Location("images/v 1/default.castr", ""), "-m", "16:64:256",
		server.Location("images/v 1/a.caibx", ""), p.a)
	out := filepath.Join(t.TempDir(), "out")
	cairn(t, "assemble", "s3://images/v 1/a.caibx", out)
	wantSame(t, out, p.a)
	cairn(t, "verify", "-s", server.Location("images/v 1/default.castr", "?region=us-east-1"), "s3://images/v%201/a.caibx")
	fails(t, notFound, "there is no such bucket", "assemble", "s3://mistyped/a.caibx", out)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	fails(t, 4, "access denied", "assemble", "s3://images/v%201/a.caibx", out)
}
