package dropin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
	"gopkg.in/ini.v1"
)

// manifestName is the name of the manifest that RAUC puts beside the indexes of a bundle.
const manifestName = "manifest.raucm"

// addImageSum adds the SHA-256 of the image that the manifest of RAUC beside the index contains. A manifest that is not
// there, or does not name the index, is not an error. 'rauc convert' keeps the checksum of the original image. A bundle
// made of a directory with an index has the checksum of the index instead, which says nothing about the image.
func (l *line) addImageSum(index string) error {
	if index == "-" || strings.Contains(index, "://") {
		return nil
	}
	name := filepath.Join(filepath.Dir(index), manifestName)
	sum, err := imageSum(name, filepath.Base(index))
	if err != nil {
		return fmt.Errorf("reading %s, which has the checksum of the image: %w", name, err)
	}
	if sum == "" {
		return nil
	}
	if own, err := fileSum(index); err == nil && own == sum {
		l.note("the checksum in %s is ignored: it is of the index, as 'rauc bundle' writes it", name)
		return nil
	}
	l.add("--image-sha256=" + sum)
	return nil
}

// fileSum returns the checksum of a file.
func fileSum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

var sha256Text = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// imageSum returns the checksum of the image whose file in a manifest is the index, or the image of that index. It
// returns "" if there is none.
func imageSum(manifest, index string) (string, error) {
	text, err := readSmall(manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	sections, err := parseKeyFile(text)
	if err != nil {
		return "", err
	}
	sum := ""
	for _, s := range sections.Sections() {
		file := s.Key("filename").String()
		if !strings.HasPrefix(s.Name(), "image.") || file != index && file+".caibx" != index {
			continue
		}
		switch found := strings.ToLower(s.Key("sha256").String()); {
		case found == "":
		case !sha256Text.MatchString(found):
			return "", fmt.Errorf("section %s: sha256 is not a checksum", s.Name())
		case sum != "" && found != sum:
			return "", fmt.Errorf("several images with different checksums are of the index %s", index)
		default:
			sum = found
		}
	}
	return sum, nil
}

// parseKeyFile parses a key file of GLib, which RAUC's manifest and configuration are.
func parseKeyFile(text []byte) (*ini.File, error) {
	o := ini.LoadOptions{KeyValueDelimiters: "=", IgnoreInlineComment: true, IgnoreContinuation: true}
	return ini.LoadSources(o, text)
}

// largest limits the size of a file with settings.
const largest = 1 << 20

// readSmall reads a file of at most largest bytes. It does not wait for a FIFO.
func readSmall(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, largest+1))
	if err == nil && len(text) > largest {
		err = fmt.Errorf("%s has more than %d bytes", name, largest)
	}
	return text, err
}
