package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxRefusedUDP bounds how many refused UDP destinations the kernel remembers
// between two looks.
const maxRefusedUDP = 256

// The rules, in nft's own words:
//
//	table inet border {
//	  set refused4 { type ipv4_addr . inet_service; size 256; flags dynamic; }
//	  set refused6 { type ipv6_addr . inet_service; size 256; flags dynamic; }
//	  chain untracked {
//	    type filter hook output priority raw
//	    meta l4proto != tcp notrack
//	    ip  saddr 127.0.0.0/8 ip  daddr 127.0.0.0/8 tcp sport != 61080 tcp dport != 61080 notrack
//	    ip6 saddr ::1         ip6 daddr ::1         tcp sport != 61080 tcp dport != 61080 notrack
//	  }
//	  chain steer {
//	    type nat hook output priority dstnat
//	    ip daddr 127.0.0.0/8 accept
//	    ip6 daddr ::1 accept
//	    meta l4proto tcp redirect to :61080
//	  }
//	  chain guard {
//	    type filter hook output priority filter; policy drop
//	    ct state established,related accept
//	    ip daddr 127.0.0.0/8 accept
//	    ip6 daddr ::1 accept
//	    icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
//	    icmpv6 type < 5 accept
//	    udp dport 53 accept
//	    udp sport 53 accept
//	    add @refused4 { ip daddr . udp dport }
//	    add @refused6 { ip6 daddr . udp dport }
//	    reject with icmpx port-unreachable
//	  }
//	}
//
// The job's own loopback traffic is not tracked, so that a test suite with many
// connections to itself cannot fill the connection table that redirection needs.
const ruleTable = "border"

type ruleset struct {
	table    *nftables.Table
	refused4 *nftables.Set
	refused6 *nftables.Set
	chains   []ruleChain
}

type ruleChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

func newRuleset() *ruleset {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: ruleTable}
	drop := nftables.ChainPolicyDrop
	r := &ruleset{
		table: t,
		refused4: &nftables.Set{Table: t, Name: "refused4", Dynamic: true, Concatenation: true, Size: maxRefusedUDP,
			KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)},
		refused6: &nftables.Set{Table: t, Name: "refused6", Dynamic: true, Concatenation: true, Size: maxRefusedUDP,
			KeyType: nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)},
	}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	notrack := []expr.Any{&expr.Notrack{}}
	r.chains = []ruleChain{{
		&nftables.Chain{Table: t, Name: "untracked", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw},
		[][]expr.Any{
			rule(l4(expr.CmpOpNeq, unix.IPPROTO_TCP), notrack),
			rule(loopback4(saddr4), loopback4(daddr4), l4(expr.CmpOpEq, unix.IPPROTO_TCP), port(sport, expr.CmpOpNeq, steerPort), port(dport, expr.CmpOpNeq, steerPort), notrack),
			rule(loopback6(saddr6), loopback6(daddr6), l4(expr.CmpOpEq, unix.IPPROTO_TCP), port(sport, expr.CmpOpNeq, steerPort), port(dport, expr.CmpOpNeq, steerPort), notrack),
		},
	}, {
		&nftables.Chain{Table: t, Name: "steer", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest},
		[][]expr.Any{
			rule(loopback4(daddr4), accept),
			rule(loopback6(daddr6), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_TCP), []expr.Any{
				&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(steerPort)},
				&expr.Redir{RegisterProtoMin: 1},
			}),
		},
	}, {
		&nftables.Chain{Table: t, Name: "guard", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &drop},
		[][]expr.Any{
			rule(established(), accept),
			rule(loopback4(daddr4), accept),
			rule(loopback6(daddr6), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_ICMP), icmpType(expr.CmpOpEq, 3), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_ICMP), icmpType(expr.CmpOpEq, 11), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_ICMP), icmpType(expr.CmpOpEq, 12), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_ICMPV6), icmpType(expr.CmpOpLt, 5), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_UDP), port(dport, expr.CmpOpEq, dnsPort), accept),
			rule(l4(expr.CmpOpEq, unix.IPPROTO_UDP), port(sport, expr.CmpOpEq, dnsPort), accept),
			rule(family(unix.NFPROTO_IPV4), l4(expr.CmpOpEq, unix.IPPROTO_UDP), remember(r.refused4, daddr4)),
			rule(family(unix.NFPROTO_IPV6), l4(expr.CmpOpEq, unix.IPPROTO_UDP), remember(r.refused6, daddr6)),
			{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}},
		},
	}}
	return r
}

// Where fields lie in IP and transport headers.
type field struct {
	base   expr.PayloadBase
	offset uint32
	length uint32
}

var (
	saddr4 = field{expr.PayloadBaseNetworkHeader, 12, 4}
	daddr4 = field{expr.PayloadBaseNetworkHeader, 16, 4}
	saddr6 = field{expr.PayloadBaseNetworkHeader, 8, 16}
	daddr6 = field{expr.PayloadBaseNetworkHeader, 24, 16}
	sport  = field{expr.PayloadBaseTransportHeader, 0, 2}
	dport  = field{expr.PayloadBaseTransportHeader, 2, 2}
)

func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func (f field) load(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.length}
}

func family(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

func loopback4(f field) []expr.Any {
	return append(family(unix.NFPROTO_IPV4),
		f.load(1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0xff, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127, 0, 0, 0}})
}

func loopback6(f field) []expr.Any {
	one := netip.IPv6Loopback().As16()
	return append(family(unix.NFPROTO_IPV6), f.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: one[:]})
}

func l4(op expr.CmpOp, proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{proto}},
	}
}

func port(f field, op expr.CmpOp, number uint16) []expr.Any {
	return []expr.Any{f.load(1), &expr.Cmp{Op: op, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)}}
}

func icmpType(op expr.CmpOp, number byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{number}},
	}
}

func established() []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// remember adds address and port to a set; when the set is full the packet goes
// on to the next rule all the same. Registers from 8 on are 4 bytes each.
func remember(set *nftables.Set, addr field) []expr.Any {
	const first = 8
	return []expr.Any{
		addr.load(first),
		dport.load(first + addr.length/4),
		&expr.Dynset{SrcRegKey: first, SetName: set.Name, Operation: unix.NFT_DYNSET_OP_ADD},
	}
}

// loadRules loads the rules into the calling thread's namespace, and reads them
// back: rules that did not load are an open door that looks shut.
func loadRules() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	r := newRuleset()
	conn.AddTable(r.table)
	for _, s := range []*nftables.Set{r.refused4, r.refused6} {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables: set %s: %w", s.Name, err)
		}
	}
	for _, c := range r.chains {
		conn.AddChain(c.chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: r.table, Chain: c.chain, Exprs: exprs})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: load rules: %w", err)
	}
	for _, c := range r.chains {
		have, err := conn.GetRules(r.table, c.chain)
		if err != nil {
			return fmt.Errorf("nftables: read back chain %s: %w", c.chain.Name, err)
		}
		if len(have) != len(c.rules) {
			return fmt.Errorf("nftables: chain %s has %d rules, want %d", c.chain.Name, len(have), len(c.rules))
		}
	}
	return nil
}

// takeRefusedUDP returns the destinations of UDP packets that were refused since
// the last call. A destination counts once, however many packets went there.
func (ns *namespace) takeRefusedUDP() ([]netip.AddrPort, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.file.Fd())))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	r := newRuleset()
	var out []netip.AddrPort
	for _, s := range []*nftables.Set{r.refused4, r.refused6} {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("nftables: set %s: %w", s.Name, err)
		}
		if len(elements) == 0 {
			continue
		}
		conn.FlushSet(s)
		for _, e := range elements {
			if addr, ok := refusedKey(e.Key); ok {
				out = append(out, addr)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return out, nil
}

// refusedKey reads address and port, each padded to 4 bytes.
func refusedKey(key []byte) (netip.AddrPort, bool) {
	if len(key) != 8 && len(key) != 20 {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(key[:len(key)-4])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(key[len(key)-4:])), ok
}
