package token

import (
	"bytes"
	"fmt"
	"os"

	"hallmark.build/attest/internal/private"
)

// PINVariable is the environment variable with the PIN, where no file has it.
const PINVariable = "HALLMARK_PKCS11_PIN"

const maxPIN = 4096

// PIN reads the PIN from its file or the environment, and takes it out of the
// latter, which the module's library can read. It is for hallmark-pkcs11.
func (u URI) PIN() (string, error) {
	pin := []byte(os.Getenv(PINVariable))
	if err := os.Unsetenv(PINVariable); err != nil {
		return "", err
	}
	if u.PINSource != "" {
		var err error
		if pin, err = private.ReadFile(u.PINSource, maxPIN); err != nil {
			return "", fmt.Errorf("pin-source: %w", err)
		}
	}
	pin = bytes.TrimRight(pin, "\r\n")
	if len(pin) == 0 {
		return "", fmt.Errorf("no PIN: name its file in pin-source, or set %s", PINVariable)
	}
	return string(pin), nil
}
