package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestLastTryIsNotTaken(t *testing.T) {
	const usual = pkcs11.CKF_LOGIN_REQUIRED | pkcs11.CKF_USER_PIN_INITIALIZED | pkcs11.CKF_TOKEN_INITIALIZED
	for flags, ok := range map[uint]bool{
		usual:                                     true,
		usual | pkcs11.CKF_USER_PIN_COUNT_LOW:     true,
		usual | pkcs11.CKF_USER_PIN_FINAL_TRY:     false,
		usual | pkcs11.CKF_USER_PIN_LOCKED:        false,
		usual | pkcs11.CKF_SO_PIN_LOCKED:          true,
		usual | pkcs11.CKF_USER_PIN_TO_BE_CHANGED: true,
	} {
		if err := mayLogin(flags); (err == nil) != ok {
			t.Errorf("%#x: %v", flags, err)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"a", "b"}} {
		var stdout, stderr bytes.Buffer
		if code := run(args, strings.NewReader(""), &stdout, &stderr); code != 2 || stdout.Len() > 0 || !strings.HasPrefix(stderr.String(), "usage: ") {
			t.Errorf("%q: %d, %q", args, code, stderr.String())
		}
	}
}
