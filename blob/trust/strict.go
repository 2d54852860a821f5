package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxDepth limits the nesting of a body.
const maxDepth = 16

// decodeStrict decodes the JSON of a body into v. Two equal keys of an object are an error, since programs differ in which
// one counts, and so are bytes behind the value. A key has lower-case letters, digits and _ only, because encoding/json would
// take others for the same field. Unknown keys are ignored, so that later versions may have more.
func decodeStrict(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := checkKeys(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more behind its JSON")
	}
	return json.Unmarshal(body, v)
}

// checkKeys reads a value, and fails if an object has two equal keys, or one with other characters.
func checkKeys(d *json.Decoder, depth int) error {
	token, err := d.Token()
	if err != nil {
		return noEOF(err)
	}
	delim, is := token.(json.Delim)
	if !is {
		return nil
	}
	if depth == maxDepth {
		return errors.New("its JSON is nested too deeply")
	}
	seen := map[string]bool{}
	for d.More() {
		if delim == '{' {
			key, err := d.Token()
			if err != nil {
				return noEOF(err)
			}
			name := key.(string) // an object's key is a string
			if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
				return fmt.Errorf("its JSON has the key %.40q: want lower-case letters, digits and _", name)
			}
			if seen[name] {
				return fmt.Errorf("its JSON has the key %.40q twice in one object", name)
			}
			seen[name] = true
		}
		if err := checkKeys(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return noEOF(err)
}

// noEOF returns an end of the data as an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
