package locate

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"cairn/internal/starter"
	"cairn/store/sftp"
)

// Needs is what the use of locations takes from the machine. A process that gives up all other rights can still use
// them.
type Needs struct {
	Connect  bool              // connections over TCP
	Paths    []string          // files and directories that are read
	Commands []starter.Command // programs that are started through Access.SFTP
	AWSKeys  bool              // AWS's files and variables
}

// Needs returns what the use of locations takes. A location that is a stream takes nothing.
func (a Access) Needs(locations ...Location) (n Needs) {
	for _, l := range locations {
		switch at := l.at.(type) {
		case localPath:
			n.Paths = append(n.Paths, string(at))
		case webPlace:
			n.Connect = true
		case s3Place:
			n.Connect, n.AWSKeys = true, true
		case sftpPlace:
			n.Commands = append(n.Commands, sftp.Command(at.Location, a.SFTP))
		}
	}
	return n
}

// Files returns the names of the identity's files.
func (i Identity) Files() (files []string) {
	for _, file := range []string{i.TLS.CA, i.TLS.Cert, i.TLS.Key} {
		if file != "" {
			files = append(files, file)
		}
	}
	for _, texts := range [][]string{i.Bearer, i.Basic, i.Headers} {
		for _, text := range texts {
			_, file := splitHost(text)
			files = append(files, file)
		}
	}
	return files
}

// AWSFiles returns the names of the files with keys and settings that AWS's variables and its tools name. They may not
// exist.
func AWSFiles() (files []string) {
	home, _ := os.UserHomeDir() // "" leaves names that do not exist
	files = []string{
		cmp.Or(os.Getenv("AWS_SHARED_CREDENTIALS_FILE"), filepath.Join(home, ".aws", "credentials")),
		cmp.Or(os.Getenv("AWS_CONFIG_FILE"), filepath.Join(home, ".aws", "config")),
	}
	for _, variable := range awsFileVariables {
		if file := os.Getenv(variable); file != "" {
			files = append(files, file)
		}
	}
	return files
}

// AWSStartsProgram reports whether one of AWS's files names a program that prints keys (credential_process).
func AWSStartsProgram() (bool, error) {
	for _, file := range AWSFiles()[:2] {
		text, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return false, err
		case strings.Contains(strings.ToLower(string(text)), "credential_process"):
			return true, nil
		}
	}
	return false, nil
}
