package egress

import (
	"fmt"
	"net/netip"

	"hallmark.build/sandbox/policy"
)

// A claim is one place where a client says which host it means.
type claim struct {
	where string // "the address", "CONNECT", "SNI", "the request target", "Host"
	host  string // canonical
}

// claims are all that a client has said. They must agree: a host that is named
// to the border and another that is named to the origin is how one host's
// permission is used for another.
type claims struct {
	said []claim
	// fallback is the address that was dialled. It names the host where nothing
	// else does, and contradicts no name: a client may have had a public address
	// from elsewhere, and the border asks for the name itself.
	fallback string
}

// dialled makes the claims of a captured connection.
func dialled(n *names, addr netip.Addr) claims {
	addr = addr.Unmap()
	if name, _, ok := n.name(addr); ok {
		return claims{said: []claim{{"the address", name}}}
	}
	if ok, _ := policy.PublicAddr(addr); ok {
		return claims{fallback: addr.String()}
	}
	return claims{said: []claim{{"the address", addr.String()}}}
}

// with returns the claims and one more.
func (c claims) with(where, host string) claims {
	return claims{said: append(append([]claim{}, c.said...), claim{where, host}), fallback: c.fallback}
}

// host is the first that was named, or "".
func (c claims) host() string {
	if len(c.said) == 0 {
		return c.fallback
	}
	return c.said[0].host
}

// agree returns the host that every claim names, or a reason why there is none.
func (c claims) agree() (host, disagreement string) {
	if c.host() == "" {
		return "", "no host is named"
	}
	for _, s := range c.said[min(1, len(c.said)):] {
		if s.host != c.said[0].host {
			return "", fmt.Sprintf("%s names %s, %s names %s", c.said[0].where, c.said[0].host, s.where, s.host)
		}
	}
	return c.host(), ""
}
