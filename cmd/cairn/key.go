package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"cairn/blob/trust"
)

func newKey() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Make and show keys that sign releases",
		Long: `key makes and shows the keys with which releases and channels are signed. They are Ed25519 keys with a name, as in
signed notes (c2sp.org/signed-note).`,
		Args: requireCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newKeyGenerate(), newKeyShow())
	return c
}

func newKeyGenerate() *cobra.Command {
	return &cobra.Command{
		Use:   "generate NAME FILE",
		Short: "Make a private key, and its public key beside it",
		Long: `generate writes a new private key to FILE, which only its owner can read, and the public key to FILE.pub. NAME is
the name of the key in signatures, such as example.com/os-2026. It overwrites no file.

Put FILE.pub into /etc/cairn/keys.d or /usr/lib/cairn/keys.d of the machines. A line of such a file is a key alone, or
behind what it may sign: 'release KEY', 'channel KEY' or 'release,channel KEY'.`,
		Example: `  cairn key generate example.com/os-release release.key`,
		Args:    checkArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runKeyGenerate(c.OutOrStdout(), args[0], args[1])
		},
	}
}

func runKeyGenerate(stdout io.Writer, name, file string) error {
	private, public, err := trust.Generate(name)
	if err == nil {
		_, err = trust.PublicOf(public) // which checks the name
	}
	if err != nil {
		return usageError{fmt.Errorf("making the key %q: %w (a name has no space and no +)", name, err)}
	}
	if err := createFile(file, private+"\n", 0o600); err != nil {
		return fmt.Errorf("writing the private key: %w", err)
	}
	if err := createFile(file+trust.PublicSuffix, public+"\n", 0o644); err != nil {
		_ = os.Remove(file)
		return fmt.Errorf("writing the public key: %w", err)
	}
	printLine(stdout, "%s", public)
	return nil
}

// createFile writes a new file.
func createFile(name, text string, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return refusedError{name + " exists", "a key is not overwritten: choose another name"}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		_ = os.Remove(name)
	}
	return err
}

// publicOfFile returns the public key of a key file of cairn.
func publicOfFile(path string) (string, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a key: %w", err)
	}
	public, err := trust.PublicOf(string(file))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return public, nil
}

func newKeyShow() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "show FILE",
		Short: "Print the public key of a key file",
		Long: `show prints the public key of FILE as machines trust it: NAME+HASH+BASE64. FILE is a private or public key of cairn, or
the PEM file of an Ed25519 public key, such as 'openssl pkey -pubout' and key services write; that needs --name.`,
		Example: `  cairn key show release.key
  cairn key show --name example.com/os-hsm hsm.pem`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return runKeyShow(c.Context(), c.OutOrStdout(), args[0], name)
		},
	}
	c.Flags().StringVar(&name, "name", "", "`name` of the key of a PEM file")
	return c
}

func runKeyShow(_ context.Context, stdout io.Writer, path, name string) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading a key: %w", err)
	}
	isPEM := bytes.Contains(file, []byte("-----BEGIN"))
	if isPEM != (name != "") {
		return usageError{fmt.Errorf("%s: a PEM file needs --name, and no other key has it", path)}
	}
	var public string
	if isPEM {
		public, err = trust.PublicOfPEM(name, file)
	} else {
		public, err = trust.PublicOf(string(file))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	printLine(stdout, "%s", public)
	return nil
}
