package egress

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"sync"
)

// maxNames bounds the names that one role can have made up.
const maxNames = 1 << 14

// fakeRange is the range that names are answered from (RFC 2544). PublicAddr
// refuses it, so that a fake address can never be dialled.
var fakeRange = netip.MustParsePrefix("198.18.0.0/15")

// names gives every name an address of its own, and knows it again. Addresses
// are not reused: a client that kept one may not end up at another name.
type names struct {
	mu     sync.Mutex
	byName map[string]netip.Addr
	byAddr []string // index is the address's offset in fakeRange

	local []string // answered with 127.0.0.1

	full func() // told when a name found no room; may be nil
}

func newNames() *names {
	return &names{byName: map[string]netip.Addr{}, byAddr: []string{""}}
}

// address returns the name's address, or false when there is room for no more.
func (n *names) address(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.byName[name]; ok {
		return addr, true
	}
	if len(n.byAddr) > maxNames {
		return netip.Addr{}, false
	}
	base := fakeRange.Addr().As4()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+uint32(len(n.byAddr)))
	addr := netip.AddrFrom4(b)
	n.byName[name] = addr
	n.byAddr = append(n.byAddr, name)
	return addr, true
}

// name returns whose address it is. ok is false for an address of the fake
// range that no name has.
func (n *names) name(addr netip.Addr) (name string, fake, ok bool) {
	if !fakeRange.Contains(addr) {
		return "", false, false
	}
	base, b := fakeRange.Addr().As4(), addr.As4()
	i := binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])
	n.mu.Lock()
	defer n.mu.Unlock()
	if i == 0 || int(i) >= len(n.byAddr) {
		return "", true, false
	}
	return n.byAddr[i], true, true
}

// Name returns a name as DNS compares it here, or false for what is not a name:
// labels of letters, digits, hyphens and underscores, the last one not a number.
func Name(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false
		}
	}
	return s, strings.Trim(labels[len(labels)-1], "0123456789") != ""
}
