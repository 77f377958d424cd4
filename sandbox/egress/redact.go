package egress

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

const redacted = "REDACTED"

// secretNames are parts of the names of query parameters whose values are
// credentials or signatures.
var secretNames = []string{
	"token", "secret", "passw", "pwd", "sig", "credential", "auth", "session", "jwt", "jws",
	"apikey", "api_key", "api-key", "accesskey", "access_key", "access-key", "key-pair-id",
	"x-amz-", "x-goog-", "x-oss-", "hdnts", "hdnea", "assertion", "samlresponse", "policy",
}

// secretExact are short names that mean the same, too short to look for inside others.
var secretExact = map[string]bool{"key": true, "code": true, "state": true, "se": true, "sp": true, "sv": true, "sr": true, "spr": true, "st": true, "skoid": true, "sktid": true, "ske": true, "sks": true, "skt": true, "skv": true}

var (
	// secretPrefix are the forms of well-known tokens, JSON web tokens among them.
	secretPrefix = regexp.MustCompile(`^(eyJ[A-Za-z0-9_-]+\.|gl[a-z]{1,6}-[A-Za-z0-9_-]{8}|gh[opsur]_[A-Za-z0-9]{8}|github_pat_|npm_[A-Za-z0-9]{8}|pypi-[A-Za-z0-9_-]{8}|xox[a-z]-|AKIA[0-9A-Z]{12}|ASIA[0-9A-Z]{12}|hf_[A-Za-z0-9]{8}|dckr_pat_|sk-[A-Za-z0-9]{8})`)
	opaque       = regexp.MustCompile(`^[A-Za-z0-9+/_=.~-]{32,}$`)
	hexDigits    = regexp.MustCompile(`^[0-9a-fA-F]+$`)
)

// minSecret is the length from which on values are looked for: GitLab masks no
// shorter ones.
const minSecret = 8

// secrets are values of the job that no record may show.
type secrets []string

func newSecrets(values []string) secrets {
	var s secrets
	for _, v := range values {
		if len(v) >= minSecret {
			s = append(s, v)
		}
	}
	return s
}

func (s secrets) in(plain string) bool {
	return slices.ContainsFunc(s, func(v string) bool { return strings.Contains(plain, v) })
}

// redactURL writes a URL for records: without user information and fragment,
// and with whatever may be a secret replaced. Names of parameters stay, and the
// host does: where bytes came from is no secret.
func redactURL(u *url.URL, known secrets) string {
	var b strings.Builder
	if u.Scheme != "" {
		b.WriteString(u.Scheme + ":")
	}
	if u.Host != "" {
		b.WriteString("//" + u.Host)
	}
	segments := strings.Split(u.EscapedPath(), "/")
	for i, s := range segments {
		if plain, err := url.PathUnescape(s); err != nil || secretPrefix.MatchString(plain) || known.in(plain) {
			segments[i] = redacted
		}
	}
	path := strings.Join(segments, "/")
	if known.in(u.Path) { // one that spans segments
		path = "/" + redacted
	}
	b.WriteString(path)
	if u.RawQuery != "" {
		b.WriteString("?" + redactQuery(u.RawQuery, known))
	}
	return printable(b.String())
}

func redactQuery(raw string, known secrets) string {
	if plain, err := url.QueryUnescape(raw); known.in(raw) || err == nil && known.in(plain) {
		return redacted
	}
	parts := strings.FieldsFunc(raw, func(r rune) bool { return r == '&' || r == ';' })
	for i, part := range parts {
		name, value, ok := strings.Cut(part, "=")
		plainName, err := url.QueryUnescape(name)
		if err != nil {
			parts[i] = redacted
			continue
		}
		if !ok { // a lone word is a value without a name
			if secretValue(name) {
				parts[i] = redacted
			}
			continue
		}
		if secretName(plainName) || secretValue(value) {
			parts[i] = name + "=" + redacted
		}
	}
	return strings.Join(parts, "&")
}

func secretName(name string) bool {
	name = strings.ToLower(name)
	if secretExact[name] {
		return true
	}
	for _, s := range secretNames {
		if strings.Contains(name, s) {
			return true
		}
	}
	return false
}

// secretValue errs towards redacting: long opaque values go, but digests stay.
func secretValue(escaped string) bool {
	plain, err := url.QueryUnescape(escaped)
	if err != nil {
		return true
	}
	if secretPrefix.MatchString(plain) {
		return true
	}
	digits := strings.ContainsAny(plain, "0123456789")
	letters := strings.ContainsFunc(plain, func(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' })
	return opaque.MatchString(plain) && !hexDigits.MatchString(plain) && digits && letters
}

// printable makes text from outside safe for a line of a record or a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}

// clip bounds text from outside.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
