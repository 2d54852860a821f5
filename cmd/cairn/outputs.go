package main

import (
	"context"

	"cairn/internal/openfile"
)

// checkOutput is openfile.CheckOutput for an optional output. The path "" is none.
func checkOutput(path string) error {
	if path == "" {
		return nil
	}
	return openfile.CheckOutput(path)
}

// writeOutput is openfile.WriteFile. It prints a warning about lost attributes.
func writeOutput(ctx context.Context, path string, data []byte) error {
	lost, err := openfile.WriteFile(ctx, path, data)
	if lost != nil {
		warnAttributesLost(path, lost)
	}
	return err
}
