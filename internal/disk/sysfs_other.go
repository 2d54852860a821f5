//go:build !linux

package disk

import "errors"

func deviceID(string) (string, error) { return "", errors.ErrUnsupported }
