package invitation

import (
	"strings"
	"testing"
)

func sample(t testing.TB) Token {
	t.Helper()
	token := Token{Address: "attestd.example.com:8471", Authority: [32]byte{1, 2, 3}}
	for i := range token.Secret {
		token.Secret[i] = byte(i * 7)
	}
	return token
}

func TestRoundTrip(t *testing.T) {
	for _, address := range []string{"attestd.example.com:8471", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:8471"} {
		token := sample(t)
		token.Address = address
		text := token.String()
		if have, err := Parse(text); err != nil || have != token {
			t.Errorf("%s: %v, %v", text, have, err)
		}
		if len(text) > MaxToken || strings.ContainsAny(text, " \n") {
			t.Errorf("%q is not one short word", text)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := sample(t).String()
	parts := strings.Split(good, "/")
	with := func(i int, part string) string {
		p := append([]string{}, parts...)
		p[i] = part
		return strings.Join(p, "/")
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {"", "does not begin"},
		"other version":     {with(0, "hallmark-join-2"), "does not begin"},
		"space before":      {" " + good, "does not begin"},
		"space after":       {good + " ", "secret"},
		"newline after":     {good + "\n", "secret"},
		"newline inside":    {with(3, parts[3][:53]+"\n"), "secret"},
		"cut off":           {good[:len(good)-1], "secret"},
		"padded":            {good + "=", "secret"},
		"other alphabet":    {with(3, strings.Repeat("+", 54)), "secret"},
		"loose last bits":   {with(3, strings.Repeat("A", 53)+"B"), "secret"},
		"short key":         {with(2, parts[2][:40]), "key"},
		"no key":            {with(2, ""), "key"},
		"three parts":       {strings.Join(parts[:3], "/"), "3 parts"},
		"five parts":        {good + "/x", "5 parts"},
		"long":              {with(1, strings.Repeat("a", 500)+":1"), "more than 512"},
		"no port":           {with(1, "attestd.example.com"), "host:port"},
		"port zero":         {with(1, "a:0"), "host:port"},
		"port with zeros":   {with(1, "a:08471"), "host:port"},
		"port by name":      {with(1, "a:https"), "host:port"},
		"large port":        {with(1, "a:65536"), "host:port"},
		"no host":           {with(1, ":8471"), "host name"},
		"every address":     {with(1, "0.0.0.0:8471"), "host name"},
		"zone":              {with(1, "[fe80::1%eth0]:8471"), "host name"},
		"user":              {with(1, "me@a:8471"), "host name"},
		"escape":            {with(1, "a\x1b[2J:8471"), "host:port"},
		"begins with a dot": {with(1, ".a:8471"), "host name"},
	} {
		_, err := Parse(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), parts[3]) {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "runner-1", "runner-1.example.com", "0", strings.Repeat("a", 63)} {
		if err := CheckName(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", ".a", "a.", "A", "a b", "a/b", "a\n", "ä", `a"b`, "a*", strings.Repeat("a", 64)} {
		if CheckName(bad) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

// FuzzParse holds that a token is taken only if it is written the one way.
func FuzzParse(f *testing.F) {
	good := sample(f).String()
	f.Add(good)
	f.Add(good + "\n")
	f.Add("hallmark-join-1/[::1]:1//")
	f.Add("hallmark-join-1/a:1/" + strings.Repeat("A", 43) + "/" + strings.Repeat("_", 54))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := Parse(text)
		if err == nil && token.String() != text {
			t.Errorf("%q reads as %q", text, token)
		}
	})
}
