package token

import (
	"bytes"
	"fmt"
	"os"

	"hallmark.build/attest/internal/private"
)

const (
	pinVariable = "HALLMARK_PKCS11_PIN"
	maxPIN      = 4096
)

// PIN reads the PIN from its file or the environment, and takes it out of the
// latter, which the module's library can read. It is for hallmark-pkcs11.
func (u URI) PIN() (string, error) {
	pin := []byte(os.Getenv(pinVariable))
	if err := os.Unsetenv(pinVariable); err != nil {
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
		return "", fmt.Errorf("no PIN: name its file in pin-source, or set %s", pinVariable)
	}
	return string(pin), nil
}
