package s3_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/verify"
	"cairn/chunker"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/s3"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestDesync: desync reads the store that cairn makes in S3, and cairn reads desync's. Both are
// equal.
func TestDesync(t *testing.T) {
	desync := need.Tool(t, "desync")
	server := storetest.S3(t, storetest.S3Options{})
	useKeys(t, server)
	t.Setenv("S3_ACCESS_KEY", server.AccessKey)
	t.Setenv("S3_SECRET_KEY", server.SecretKey)
	t.Setenv("S3_REGION", "us-east-1")
	image := testimages.Random(1, 3<<20)
	location := server.Location(newBucket(t, server), "")
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), desync, args...).CombinedOutput(); err != nil {
			t.Fatalf("desync %q: %v: %s", args, err, out)
		}
	}

	index := makeImage(t, openBucket(t, location+"/ours", s3.Options{}), image)
	b := openBucket(t, location+"/", s3.Options{})
	if err := b.Write(t.Context(), "ours.caibx", index.Encode()); err != nil {
		t.Fatal(err)
	}
	run("extract", "-s", location+"/ours", location+"/ours.caibx", path+".out")
	if got, err := os.ReadFile(path + ".out"); err != nil || !bytes.Equal(got, image) {
		t.Errorf("desync extracts %d other bytes from our store, %v", len(got), err)
	}

	run("make", "-s", location+"/theirs", "-m", "16:64:256", location+"/theirs.caibx", path)
	file, err := b.Read(t.Context(), "theirs.caibx", nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := blob.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	chunks := store.NewChunks(openBucket(t, location+"/theirs", s3.Options{}), blob.SHA512_256)
	for _, x := range []*blob.Index{index, theirs} {
		report, err := verify.Store(t.Context(), x, chunks, verify.Options{})
		if err != nil || report.Bad > 0 || report.Done != int64(len(image)) {
			t.Errorf("desync's store: %+v, %v", report, err)
		}
	}
}

// makeImage writes the chunks of an image into a bucket.
func makeImage(t *testing.T, b store.Bucket, image []byte) *blob.Index {
	t.Helper()
	w, err := store.NewWriter(b, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	params, err := chunker.ParseParams("16:64:256")
	if err != nil {
		t.Fatal(err)
	}
	index, _, err := ingest.Image(t.Context(), chunker.FromReaderAt(bytes.NewReader(image), int64(len(image))), w, ingest.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return index
}
