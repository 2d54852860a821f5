package locate

import (
	"fmt"
	"os"

	"cairn/internal/rotate"
)

// awsFileVariables are AWS's variables that name files.
var awsFileVariables = []string{"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE",
	"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"}

// copyPipedAWSFiles copies the files of AWS's variables that can be read only once, such as pipes, and points the
// variables to the copies. Each bucket reads these files again.
func copyPipedAWSFiles(r *rotate.Reader) error {
	for _, variable := range awsFileVariables {
		named := os.Getenv(variable)
		if _, err := os.Stat(named); err != nil {
			continue // the readers of the file know whether they need it
		}
		path, err := r.Path(named)
		if err == nil && path != named {
			err = os.Setenv(variable, path)
		}
		if err != nil {
			return fmt.Errorf("reading the file that %s names: %w", variable, err)
		}
	}
	return nil
}
