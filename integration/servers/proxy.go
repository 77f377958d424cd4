package servers

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
)

// A Proxy stands between a client and PostgreSQL, and can cut the connections
// of all who come through it.
type Proxy struct {
	dir     string
	backend string

	mu      sync.Mutex
	conns   map[net.Conn]net.Conn // client by server
	left    int                   // messages that pass before the cut
	deliver bool                  // whether the last one reaches the server
	down    bool
	cut     bool
}

// NewProxy starts one. It ends with the test.
func (s *Servers) NewProxy(t testing.TB) *Proxy {
	t.Helper()
	p := &Proxy{dir: t.TempDir(), backend: filepath.Join(s.dir, "postgres", fmt.Sprintf(".s.PGSQL.%d", s.pgPort)), conns: map[net.Conn]net.Conn{}, left: -1}
	l, err := net.Listen("unix", filepath.Join(p.dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.Cut()
		wg.Wait()
	})
	return p
}

// URL names a database behind the proxy.
func (p *Proxy) URL(name string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&user=hallmark", name, p.dir)
}

// CutAfter cuts all connections after so many more messages of clients, and
// refuses new ones. The last message reaches the server, or does not: its
// answer never comes back.
func (p *Proxy) CutAfter(messages int, deliver bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.deliver, p.cut = messages, deliver, false
}

// Cut cuts all connections now.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAll()
}

func (p *Proxy) cutAll() {
	p.down, p.cut, p.left = true, true, -1
	for server, client := range p.conns {
		server.Close()
		client.Close()
	}
}

// Heal lets connections through again. It reports whether there was a cut.
func (p *Proxy) Heal() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.cut
	p.down, p.cut, p.left = false, false, -1
	return was
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", p.backend)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.join(server, client) {
		return
	}
	defer p.leave(server)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(client, server)
		client.Close()
	})
	p.forward(server, client)
	server.Close()
	wg.Wait()
}

func (p *Proxy) join(server, client net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.down {
		p.conns[server] = client
	}
	return !p.down
}

func (p *Proxy) leave(server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, server)
}

func (p *Proxy) forward(server, client net.Conn) {
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if err != nil || !p.pass(server, buf[:n]) {
			return
		}
	}
}

// pass sends one message on, unless it is the last one's turn.
func (p *Proxy) pass(server net.Conn, message []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.left == 0
	if p.left > 0 {
		p.left--
	}
	if !last || p.deliver {
		if _, err := server.Write(message); err != nil {
			return false
		}
	}
	if last {
		p.cutAll()
	}
	return !last
}
