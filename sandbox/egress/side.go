package egress

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

const (
	maxConnections = 256  // of one role at a time
	maxDistinct    = 1000 // different refusals of one stage that are recorded by name
	acceptPause    = 10 * time.Millisecond
)

// A side is the border towards one role: its namespace, and the period that
// runs there.
type side struct {
	b     *Border
	role  sandbox.Role
	ns    *namespace
	names *names
	loops sync.WaitGroup

	turning sync.Mutex // held while one period gives way to the next

	mu     sync.Mutex
	period *period
}

func newSide(b *Border, role sandbox.Role, ns *namespace) *side {
	s := &side{b: b, role: role, ns: ns, names: newNames()}
	if role == sandbox.Build {
		s.names.local = b.cfg.LocalNames
	}
	s.period = newPeriod(s, "")
	s.names.full = func() {
		_ = s.current().block(record.Block{Protocol: "dns", Target: "any", Rule: ruleCapacity, Reason: "more names than the border knows"})
	}
	return s
}

// start serves the namespace's sockets until they are closed.
func (s *side) start() {
	for _, l := range s.ns.steered {
		s.loops.Go(func() { s.accept(l, (*period).serveSteered) })
	}
	s.loops.Go(func() { s.accept(s.ns.proxy, (*period).serveProxy) })
	for _, l := range s.ns.dnsTCP {
		s.loops.Go(func() {
			s.accept(l, func(p *period, c net.Conn) { s.names.serveDNSStream(c, bufio.NewReader(c)) })
		})
	}
	s.loops.Go(func() { s.names.serveDNS4(s.ns.dns4) })
	if s.ns.dns6 != nil {
		s.loops.Go(func() { s.names.serveDNS6(s.ns.dns6) })
	}
}

func (s *side) accept(l net.Listener, serve func(*period, net.Conn)) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, most likely
			time.Sleep(acceptPause)
			continue
		}
		s.current().admit(c, serve)
	}
}

func (s *side) current() *period {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.period
}

// turn ends the period and begins the next one. It returns when nothing of the
// old one runs any more.
func (s *side) turn(stage sandbox.Stage) error {
	s.turning.Lock()
	defer s.turning.Unlock()
	next := newPeriod(s, stage)
	s.mu.Lock()
	old := s.period
	s.period = next
	s.mu.Unlock()
	err := old.end()
	if s.role == sandbox.Helper {
		s.b.forgetCache()
		s.b.forgetBlocks(nil)
	}
	return err
}

func (s *side) close() error {
	s.turning.Lock()
	defer s.turning.Unlock()
	s.ns.closeSockets()
	s.loops.Wait()
	err := s.current().end()
	if s.role == sandbox.Helper {
		s.b.forgetCache()
		s.b.forgetBlocks(nil)
	}
	s.ns.close()
	return err
}

// A period is the time of one stage, or the time between two (stage ""). A
// connection belongs to the period that it came in; it never sees another
// period's permission.
type period struct {
	side   *side
	stage  sandbox.Stage
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	ended   bool
	conns   map[net.Conn]struct{}
	blocked map[record.Block]int64 // how many further ones came, by what was recorded
	order   []record.Block
	failure error
}

func newPeriod(s *side, stage sandbox.Stage) *period {
	ctx, cancel := context.WithCancel(context.Background())
	return &period{side: s, stage: stage, ctx: ctx, cancel: cancel, conns: map[net.Conn]struct{}{}, blocked: map[record.Block]int64{}}
}

// admit serves a connection in a goroutine that end waits for.
func (p *period) admit(c net.Conn, serve func(*period, net.Conn)) {
	p.mu.Lock()
	switch {
	case p.ended:
		p.mu.Unlock()
		c.Close()
		return
	case len(p.conns) >= maxConnections:
		p.mu.Unlock()
		cut(c)
		p.block(record.Block{Protocol: "tcp", Target: "any", Rule: ruleCapacity, Reason: "more connections at once than the border holds"})
		return
	}
	p.conns[c] = struct{}{}
	p.work.Add(1)
	p.mu.Unlock()
	go func() {
		defer p.work.Done()
		defer func() {
			c.Close()
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
		}()
		defer p.recovered()
		serve(p, c)
	}()
}

// recovered keeps a panic over one client's bytes to its own job, which fails.
func (p *period) recovered() {
	if v := recover(); v != nil {
		p.side.b.cfg.Log.Error("panic", "value", v, "stack", string(debug.Stack()))
		p.fail(errors.New("border: internal error"))
	}
}

// end closes the period's connections, waits for their handlers, and records
// how often each refusal was repeated.
func (p *period) end() error {
	p.cancel()
	p.mu.Lock()
	p.ended = true
	for c := range p.conns {
		cut(c)
	}
	p.mu.Unlock()
	p.work.Wait()
	p.noteUDP()
	p.mu.Lock()
	order := p.order
	p.mu.Unlock()
	for _, b := range order {
		p.mu.Lock()
		b, n := b, p.blocked[b]
		p.mu.Unlock()
		if n == 0 {
			continue
		}
		b.Count = n
		if err := p.report(b); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure
}

// fail keeps the first failure that was the border's own.
func (p *period) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure == nil {
		p.failure = err
	}
}

// block records a refusal, once for each different one; repetitions are counted
// until the period ends.
func (p *period) block(b record.Block) error {
	b.Stage, b.Role, b.Count = string(p.stage), string(p.side.role), 0
	b.Target, b.Reason = clip(printable(b.Target), maxTarget), clip(printable(b.Reason), maxReason)
	if !p.firstOf(&b) {
		return p.side.b.broken()
	}
	return p.report(b)
}

const (
	maxTarget = 2048
	maxReason = 512
)

// firstOf counts a refusal and reports whether it is the first of its kind. When
// there are too many kinds the rest are taken together.
func (p *period) firstOf(b *record.Block) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.blocked[*b]; !ok && len(p.order) >= maxDistinct {
		b.Method, b.Target, b.Reason = "", "others", "more different refusals than are recorded one by one"
		b.Protocol, b.Rule, b.Remedy = "tcp", ruleCapacity, ""
	}
	if _, ok := p.blocked[*b]; ok {
		p.blocked[*b]++
		return false
	}
	p.blocked[*b] = 0
	p.order = append(p.order, *b)
	return true
}

func (p *period) report(b record.Block) error {
	if err := p.side.b.append(record.Blocked, b); err != nil {
		return err
	}
	if f := p.side.b.cfg.OnBlock; f != nil {
		f(b)
	}
	return nil
}

// noteUDP records where UDP packets wanted to go.
func (p *period) noteUDP() {
	destinations, err := p.side.ns.takeRefusedUDP()
	if err != nil {
		// They were refused all the same; only the names of them are lost.
		p.side.b.cfg.Log.Warn("refused udp destinations not read", "role", string(p.side.role), "error", err)
		return
	}
	for _, d := range destinations {
		_ = p.block(record.Block{Protocol: "udp", Target: p.side.describe(d), Rule: ruleUDP, Reason: "no datagram but DNS is answered"})
	}
}

// describe names an address as the client knows it.
func (s *side) describe(d netip.AddrPort) string {
	if name, _, ok := s.names.name(d.Addr()); ok {
		return joinAuthority("", name, int(d.Port()))
	}
	return d.String()
}

// cut ends a connection so that the client cannot take it for a proper end.
func cut(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}
