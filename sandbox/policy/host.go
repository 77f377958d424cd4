package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// maxHost is the longest name that DNS can carry.
const maxHost = 253

// CanonicalHost returns the one form of a host name or address in which hosts
// are compared: ASCII (IDNA), lower case, without a trailing dot; addresses in
// the form that package netip prints, IPv4 inside IPv6 unwrapped. It refuses
// user information, ports, zones, and every spelling of a number that some
// resolver takes for an address (127.1, 0x7f.1, 2130706433).
func CanonicalHost(host string) (string, error) {
	if addr, ok := literal(host); ok {
		return addr.String(), nil
	}
	name := strings.TrimSuffix(host, ".")
	switch {
	case name == "":
		return "", errors.New("no host name")
	case len(host) > 4*maxHost:
		return "", errors.New("host name too long")
	case strings.ContainsAny(name, "@:/\\?#%[] \t\r\n\x00"):
		return "", fmt.Errorf("host %q: a character that no host name has", clip(host))
	}
	name, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return "", fmt.Errorf("host %q: not a host name", clip(host))
	}
	// The result must be its own canonical form, else two comparisons of one
	// name could differ.
	if again, err := idna.Lookup.ToASCII(name); err != nil || again != name {
		return "", fmt.Errorf("host %q: not a host name", clip(host))
	}
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("host %q: %w", clip(host), err)
	}
	return name, nil
}

// literal reads an address, bracketed or not.
func literal(host string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if !ok || !strings.Contains(inner, ":") {
			return netip.Addr{}, false
		}
		host = inner
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

func checkName(name string) error {
	if len(name) > maxHost {
		return errors.New("longer than DNS allows")
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 {
			return errors.New("a label that is empty or too long")
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("a label with other characters than letters, digits and inner hyphens")
		}
	}
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return errors.New("some programs would read it as an address")
	}
	return nil
}

// clip bounds what is repeated from a client.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// notPublic are the ranges that no request may reach, whatever a rule says:
// IANA's special-purpose registries, and addresses inside which another lies
// that could be private.
var notPublic = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local or metadata service"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relay"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking, the border's own"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved or broadcast"},
	// Of IPv6 only 2000::/3 is global unicast; inside it these are not.
	{netip.MustParsePrefix("2001::/23"), "protocol assignments, Teredo among them"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation"},
	{netip.MustParsePrefix("3fff::/20"), "documentation"},
}

var (
	global6 = netip.MustParsePrefix("2000::/3")
	sixTo4  = netip.MustParsePrefix("2002::/16")
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	// metadata6 is in a private range already; it is named for its reason.
	metadata6 = netip.MustParseAddr("fd00:ec2::254")
)

// PublicAddr reports whether an address is one of the public internet. If not,
// what says which kind it is.
func PublicAddr(addr netip.Addr) (ok bool, what string) {
	if !addr.IsValid() || addr.Zone() != "" {
		return false, "not an address"
	}
	addr = addr.Unmap()
	if addr.Is6() {
		switch {
		case addr == metadata6:
			return false, "metadata service"
		case nat64.Contains(addr):
			b := addr.As16()
			ok, what := PublicAddr(netip.AddrFrom4([4]byte(b[12:16])))
			return ok, what + " (by NAT64)"
		case sixTo4.Contains(addr):
			b := addr.As16()
			ok, what := PublicAddr(netip.AddrFrom4([4]byte(b[2:6])))
			return ok, what + " (by 6to4)"
		case !global6.Contains(addr):
			return false, "not global unicast"
		}
	}
	for _, r := range notPublic {
		if r.prefix.Contains(addr) {
			return false, r.what
		}
	}
	return true, ""
}

// localName reports names that mean the machine itself.
func localName(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "localhost.localdomain"
}
