package token

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// A URI is a parsed PKCS#11 URI.
type URI struct {
	Token, Serial string
	Slot          *int
	Object        string
	ID            []byte
	Module        string
	PINSource     string // a path, or empty
}

const maxURI = 4096

// Parse reads a URI. No error quotes it: it might hold a PIN where none belongs.
func Parse(text string) (URI, error) {
	rest, ok := strings.CutPrefix(text, "pkcs11:")
	if !ok || len(text) > maxURI {
		return URI{}, errors.New("not a PKCS#11 URI of reasonable length")
	}
	path, query, _ := strings.Cut(rest, "?")
	var u URI
	if err := attributes(path, ";", u.setPath); err != nil {
		return URI{}, err
	}
	if err := attributes(query, "&", u.setQuery); err != nil {
		return URI{}, err
	}
	return u, u.check()
}

// attributes calls set for each name and decoded value.
func attributes(text, separator string, set func(name, value string) error) error {
	if text == "" {
		return nil
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, separator) {
		name, raw, ok := strings.Cut(part, "=")
		value, err := url.PathUnescape(raw)
		switch {
		case !ok || name == "" || strings.ContainsFunc(name, notName):
			return errors.New(`want attributes as "name=value"`)
		case err != nil || strings.ContainsRune(value, 0) && name != "id":
			return fmt.Errorf("%s: the value does not parse", name)
		case value == "":
			return fmt.Errorf("%s: empty", name)
		case seen[name]:
			return fmt.Errorf("%s: there twice", name)
		}
		seen[name] = true
		if err := set(name, value); err != nil {
			return err
		}
	}
	return nil
}

// notName keeps a PIN that is written in the wrong place out of errors: names
// are short words.
func notName(r rune) bool { return (r < 'a' || r > 'z') && r != '-' }

func (u *URI) setPath(name, value string) error {
	switch name {
	case "token":
		u.Token = value
	case "serial":
		u.Serial = value
	case "slot-id":
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return errors.New("slot-id: not a number")
		}
		slot := int(n)
		u.Slot = &slot
	case "object":
		u.Object = value
	case "id":
		u.ID = []byte(value)
	case "type":
		if value != "private" {
			return errors.New("type: want private")
		}
	default:
		return unknown(name)
	}
	return nil
}

func (u *URI) setQuery(name, value string) error {
	switch name {
	case "module-path":
		u.Module = value
	case "pin-source":
		u.PINSource = strings.TrimPrefix(strings.TrimPrefix(value, "file:"), "//")
	case "pin-value":
		return errors.New("pin-value: a PIN has no place in a URI: name its file in pin-source")
	default:
		return unknown(name)
	}
	return nil
}

func unknown(name string) error {
	return fmt.Errorf("%.20s: unknown: want token, serial or slot-id; object or id; module-path; pin-source", name)
}

func (u *URI) check() error {
	tokens := 0
	for _, given := range []bool{u.Token != "", u.Serial != "", u.Slot != nil} {
		if given {
			tokens++
		}
	}
	switch {
	case tokens != 1:
		return errors.New("want one of token, serial and slot-id")
	case u.Object == "" && u.ID == nil:
		return errors.New("want object or id: which key")
	case !filepath.IsAbs(u.Module):
		return errors.New("want module-path, an absolute path: which library")
	case u.PINSource != "" && !filepath.IsAbs(u.PINSource):
		return errors.New("pin-source: want an absolute path")
	}
	return nil
}
