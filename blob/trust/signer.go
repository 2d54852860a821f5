package trust

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"cairn/internal/childenv"
)

// Generate returns a new private key with a name, and its public key.
func Generate(name string) (private, public string, err error) {
	if private, public, err = note.GenerateKey(nil, name); err != nil {
		return "", "", fmt.Errorf("making a key: %w", err)
	}
	return private, public, nil
}

// PublicOf returns the public key of the text of a private key, or of a public key file with one key.
func PublicOf(text string) (public string, err error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "PRIVATE+KEY+") {
		k := NewKeys()
		if err := k.AddPublic(text); err != nil {
			return "", err
		}
		if len(k.known) > 1 {
			return "", fmt.Errorf("%w: it has %d keys, want one", ErrInvalid, len(k.known))
		}
		for public = range k.known {
		}
		return public, nil
	}
	parts := strings.SplitN(text, "+", 5)
	signer, err := note.NewSigner(text)
	if err != nil {
		return "", err
	}
	seed, err := base64.StdEncoding.DecodeString(parts[4]) // NewSigner has checked it; the first byte is the algorithm
	if err != nil {
		return "", err
	}
	return note.NewEd25519VerifierKey(signer.Name(), ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey))
}

// PublicOfPEM returns the public key of a PEM file, such as openssl and key services write, with a name.
func PublicOfPEM(name string, file []byte) (public string, err error) {
	block, _ := pem.Decode(file)
	if block == nil || block.Type != "PUBLIC KEY" {
		return "", fmt.Errorf("%w: it is no PEM file with a public key", ErrInvalid)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	key, is := parsed.(ed25519.PublicKey)
	if !is {
		return "", fmt.Errorf("%w: its key is a %T: want Ed25519", ErrInvalid, parsed)
	}
	if public, err = note.NewEd25519VerifierKey(name, key); err != nil {
		return "", err
	}
	_, err = note.NewVerifier(public) // which checks the name
	return public, err
}

// commandSigner signs with a program, which reads the bytes to sign from stdin and writes an Ed25519 signature of 64
// bytes to stdout. So the private key may be in a PKCS#11 token or a key service.
type commandSigner struct {
	ctx context.Context
	note.Verifier
	command []string
	stderr  io.Writer
}

// NewCommandSigner returns a signer that runs a program with arguments, whose messages go to stderr. public is the public
// key.
func NewCommandSigner(ctx context.Context, public string, command []string, stderr io.Writer) (note.Signer, error) {
	if len(command) == 0 {
		return nil, errors.New("signing: the program's name is empty")
	}
	v, err := note.NewVerifier(strings.TrimSpace(public))
	if err != nil {
		return nil, fmt.Errorf("signing with %s: %.80q is no public key: want NAME+HASH+BASE64", command[0], public)
	}
	return &commandSigner{ctx, v, command, stderr}, nil
}

// Sign implements note.Signer.
func (s *commandSigner) Sign(msg []byte) ([]byte, error) {
	c := exec.CommandContext(s.ctx, s.command[0], s.command[1:]...)
	c.Stdin, c.Stderr, c.Env = bytes.NewReader(msg), s.stderr, childenv.Environ()
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	signature, err := io.ReadAll(io.LimitReader(out, ed25519.SignatureSize+1))
	_, _ = io.Copy(io.Discard, out)
	if waited := c.Wait(); waited != nil {
		return nil, fmt.Errorf("%s: %w", s.command[0], waited)
	}
	if err != nil {
		return nil, err
	}
	if len(signature) != ed25519.SignatureSize {
		return nil, fmt.Errorf("%s wrote %d bytes, not a signature of %d", s.command[0], len(signature), ed25519.SignatureSize)
	}
	if !s.Verify(msg, signature) {
		return nil, fmt.Errorf("%s wrote a signature that the public key %s does not verify", s.command[0], s.Name())
	}
	return signature, nil
}
