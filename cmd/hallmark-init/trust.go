package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"hallmark.build/sandbox/containerd/initproto"
)

// maxStore bounds a trust store that is read or added to.
const maxStore = 8 << 20

// stores are the bundles of roots that distributions have, most common first.
var stores = []string{
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
	"/var/lib/ca-certificates/ca-bundle.pem",
	"/kaniko/ssl/certs/ca-certificates.crt",
}

// setup does what has to be done before any stage.
func setup(m initproto.Setup) initproto.Message {
	for _, f := range m.Files {
		if err := replace(f.Path, f.Data); err != nil {
			return *failure(0, blame(err), "write "+f.Path, err.Error())
		}
	}
	var stores []string
	if len(m.CA) > 0 {
		var err error
		if stores, err = trust("/", m.CA); err != nil {
			return *failure(0, blame(err), "trust stores", err.Error())
		}
	}
	for _, d := range m.Dirs {
		// The image's wish: what cannot be made is missed by who needs it.
		_ = os.MkdirAll(d, 0o755)
	}
	return initproto.Ready{Stores: stores}
}

// replace puts a file in the place of whatever the image has there, without
// following it if it is a link.
func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".hallmark"
	os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// trust adds the authority to every store below root that can be written, and
// makes the files that TrustEnv points to.
func trust(root string, ca []byte) ([]string, error) {
	roots := imageRoots(root)
	names, err := addToStores(root, ca)
	if err != nil {
		return nil, err
	}
	both := append(append(roots, '\n'), ca...)
	for name, data := range map[string][]byte{
		initproto.CAFile:    ca,
		initproto.RootsFile: both,
		initproto.JavaFile:  javaStore(certificates(both)),
	} {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// imageRoots is the first store that has a certificate.
func imageRoots(root string) []byte {
	for _, name := range stores {
		data, err := readRegular(filepath.Join(root, name), maxStore)
		if err == nil && bytes.Contains(data, []byte("-----BEGIN CERTIFICATE-----")) {
			return data
		}
	}
	return nil
}

// addToStores appends to the stores that exist; where none does, it makes the
// most common one. A read-only root has none that can be changed.
func addToStores(root string, ca []byte) ([]string, error) {
	var names []string
	var seen []os.FileInfo // several names may lead to one file
	for _, name := range stores {
		info, err := add(filepath.Join(root, name), ca, seen)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, errSkip):
			continue
		case errors.Is(err, syscall.EROFS):
			return names, nil
		case err != nil:
			return nil, err
		}
		seen = append(seen, info)
		names = append(names, name)
	}
	if len(names) > 0 {
		return names, nil
	}
	switch err := replace(filepath.Join(root, stores[0]), ca); {
	case errors.Is(err, syscall.EROFS):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return stores[:1], nil
}

// errSkip says that what is there is no store, or was added to already.
var errSkip = errors.New("not a store")

func add(path string, ca []byte, seen []os.FileInfo) (os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	switch {
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENODEV):
		return nil, errSkip
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxStore {
		return nil, errSkip
	}
	for _, s := range seen {
		if os.SameFile(s, info) {
			return nil, errSkip
		}
	}
	_, err = f.Write(append([]byte("\n"), ca...))
	return info, err
}

// blame tells the image's faults from the system's.
func blame(err error) initproto.Reason {
	for _, e := range []error{syscall.EISDIR, syscall.ENOTDIR, syscall.ELOOP, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENOENT, syscall.EPERM, syscall.EACCES} {
		if errors.Is(err, e) {
			return initproto.BadImage
		}
	}
	return initproto.System
}

// certificates are the DER forms of those in a bundle.
func certificates(bundle []byte) [][]byte {
	var all [][]byte
	for {
		var block *pem.Block
		block, bundle = pem.Decode(bundle)
		if block == nil {
			return all
		}
		if block.Type == "CERTIFICATE" && len(block.Bytes) > 0 {
			all = append(all, block.Bytes)
		}
	}
}

// javaStore makes a PKCS #12 file (RFC 7292) of certificates alone, with
// neither password nor MAC, which Java reads as a trust store: each certificate
// carries the attribute by which Java marks those that are trusted.
func javaStore(certs [][]byte) []byte {
	var (
		data        = der(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01})                   // 1.2.840.113549.1.7.1
		certBag     = der(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03})       // 1.2.840.113549.1.12.10.1.3
		x509        = der(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x16, 0x01})             // 1.2.840.113549.1.9.22.1
		friendly    = der(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x14})                   // 1.2.840.113549.1.9.20
		trustedUse  = der(0x06, []byte{0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01}) // 2.16.840.1.113894.746875.1.1
		anyPurpose  = der(0x06, []byte{0x55, 0x1d, 0x25, 0x00})                                                 // 2.5.29.37.0
		sequence    = func(parts ...[]byte) []byte { return der(0x30, parts...) }
		set         = func(parts ...[]byte) []byte { return der(0x31, parts...) }
		explicit    = func(parts ...[]byte) []byte { return der(0xa0, parts...) }
		octets      = func(parts ...[]byte) []byte { return der(0x04, parts...) }
		contentInfo = func(content []byte) []byte { return sequence(data, explicit(octets(content))) }
	)
	var bags [][]byte
	for i, c := range certs {
		var name []byte
		for _, r := range "hallmark-" + strconv.Itoa(i) {
			name = append(name, 0, byte(r))
		}
		bags = append(bags, sequence(certBag,
			explicit(sequence(x509, explicit(octets(c)))),
			set(sequence(friendly, set(der(0x1e, name))), sequence(trustedUse, set(anyPurpose)))))
	}
	safe := contentInfo(sequence(bags...))
	return sequence(der(0x02, []byte{3}), contentInfo(sequence(safe)))
}

// der is one value in ASN.1's distinguished encoding.
func der(tag byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	out := []byte{tag}
	if n := len(body); n < 0x80 {
		out = append(out, byte(n))
	} else {
		var size []byte
		for ; n > 0; n >>= 8 {
			size = append([]byte{byte(n)}, size...)
		}
		out = append(append(out, 0x80|byte(len(size))), size...)
	}
	return append(out, body...)
}
