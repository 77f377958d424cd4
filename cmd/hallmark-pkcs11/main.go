// Command hallmark-pkcs11 signs digests with a key in a PKCS#11 token.
//
//	hallmark-pkcs11 URI
//
// hallmark-attestd starts it, and speaks to it over standard input and output
// as package token says. It is a program of its own, and the only one of ours
// that is linked dynamically, because a PKCS#11 module is a vendor's C library.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"hallmark.build/attest/sign/key/token"
)

const sessions = 16 // signatures at a time

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) != 1 {
		fmt.Fprintln(stderr, "usage: hallmark-pkcs11 URI; hallmark-attestd starts it")
		return 2
	}
	signer, closer, err := open(args[0])
	if err != nil {
		_ = token.Fail(stdout, err)
		return 1
	}
	defer closer.Close()
	if err := token.Serve(stdin, stdout, signer, sessions); err != nil {
		return 1
	}
	return 0
}

// open logs in and finds the one key that the URI names.
func open(text string) (crypto.Signer, io.Closer, error) {
	// The PIN is in memory from here on.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("non-dumpable: %w", err)
	}
	uri, err := token.Parse(text)
	if err != nil {
		return nil, nil, err
	}
	pin, err := uri.PIN()
	if err != nil {
		return nil, nil, err
	}
	if err := inspect(uri); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", uri.Module, err)
	}
	ctx, err := crypto11.Configure(&crypto11.Config{
		Path: uri.Module, TokenLabel: uri.Token, TokenSerial: uri.Serial, SlotNumber: uri.Slot,
		Pin: pin, MaxSessions: sessions + 1, // one keeps the login
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", uri.Module, err)
	}
	signer, err := find(ctx, uri)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", uri.Module, err), ctx.Close())
	}
	return signer, ctx, nil
}

// inspect looks at the token before anybody logs in.
func inspect(uri token.URI) error {
	module := pkcs11.New(uri.Module)
	if module == nil {
		return errors.New("not a PKCS#11 module, or not there")
	}
	defer module.Destroy()
	if err := module.Initialize(); err != nil {
		return err
	}
	defer func() { _ = module.Finalize() }()
	slots, err := module.GetSlotList(true)
	if err != nil {
		return err
	}
	var found []pkcs11.TokenInfo
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		if err != nil {
			return err
		}
		if uri.Slot != nil && uint(*uri.Slot) == slot || uri.Token != "" && info.Label == uri.Token || uri.Serial != "" && info.SerialNumber == uri.Serial {
			found = append(found, info)
		}
	}
	if len(found) != 1 {
		return fmt.Errorf("%d tokens of this name: want one", len(found))
	}
	return mayLogin(found[0].Flags)
}

// mayLogin never takes a token's last try: a daemon that is started again and
// again with a wrong PIN would lock it.
func mayLogin(flags uint) error {
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return errors.New("the token is locked: too many wrong PINs")
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return errors.New("one try is left before the token is locked: make sure of the PIN, and log in once by hand")
	}
	return nil
}

func find(ctx *crypto11.Context, uri token.URI) (crypto.Signer, error) {
	var label []byte
	if uri.Object != "" {
		label = []byte(uri.Object)
	}
	pairs, err := ctx.FindKeyPairs(uri.ID, label)
	if err != nil {
		return nil, err
	}
	if len(pairs) != 1 {
		return nil, fmt.Errorf("the token has %d key pairs of this name: want one", len(pairs))
	}
	if pub, ok := pairs[0].Public().(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("the key is not ECDSA P-256")
	}
	return pairs[0], nil
}
