package blob_test

import (
	"bytes"
	"fmt"

	"cairn/blob"
)

// An index lists the chunks of an image. It is read from a .caibx file, which casync, desync and cairn write alike.
func Example() {
	params := blob.Params{Min: 4, Avg: 4, Max: 4}
	b, err := blob.NewBuilder(blob.SHA512_256, params)
	if err != nil {
		panic(err)
	}
	for _, chunk := range []string{"root", "file", "root"} {
		if _, err := b.Add(int64(len(chunk)), blob.SHA512_256.Sum([]byte(chunk))); err != nil {
			panic(err)
		}
	}
	file := b.Index().Encode()

	x, err := blob.Decode(bytes.NewReader(file))
	if err != nil {
		panic(err)
	}
	fmt.Println(x.Size(), "bytes in", x.Len(), "chunks")
	for i, c := range x.All() {
		fmt.Printf("chunk %d at %d: %.8s\n", i, c.Offset, c.Digest)
	}
	fmt.Println("byte 6 is in chunk", x.Find(6))
	// Output:
	// 12 bytes in 3 chunks
	// chunk 0 at 0: a09b0c9c
	// chunk 1 at 4: 1e445c12
	// chunk 2 at 8: a09b0c9c
	// byte 6 is in chunk 1
}
