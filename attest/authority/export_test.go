package authority

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
)

// Takes reports whether a record that holds lines would take one more.
func Takes(held [][]byte, line []byte) bool {
	l := &live{}
	for _, h := range held {
		if _, err := l.add(h); err != nil {
			panic(err)
		}
	}
	if same, known := l.has(line); known {
		return same
	}
	_, err := l.copy().add(line)
	return err == nil
}

// Parse is parsePath, spelt out.
func Parse(path, builders string) (kind int, value string) {
	p := parsePath(path, builders)
	return int(p.kind), p.value
}

// SetMaxRecord spares tests writing MaxRecord bytes.
func (a *Authority) SetMaxRecord(n int64) { a.maxRecord = n }

// MaxConnections is maxConnections.
const MaxConnections = maxConnections

// Certify issues a host's certificate, whoever asks.
func (ca *HostCA) Certify(name string, key crypto.PublicKey) ([]byte, error) {
	der, _, err := ca.certifyHost(name, key)
	return der, err
}

// Server issues the certificate of the server.
func (ca *HostCA) Server(names ...string) (*tls.Certificate, error) {
	return (&serverCert{ca: ca, names: names}).get(nil)
}

// Cert is the authority's own certificate.
func (ca *HostCA) Cert() *x509.Certificate { return ca.cert }

// Refusals are all events of refusals.
func Refusals() []Event { return refusals }

// RequestedKey is requestedKey, as far as tests care.
func RequestedKey(der []byte) (any, error) {
	req, err := requestedKey(der)
	if err != nil {
		return nil, err
	}
	return req.PublicKey, nil
}

// MaxConnectionsOfHost is maxConnectionsOfHost.
const MaxConnectionsOfHost = maxConnectionsOfHost

// LockedPerHost is lockedPerHost.
const LockedPerHost = lockedPerHost

// FromHost is a call's context that comes from a host which may attest everything.
func FromHost(ctx context.Context, name string) context.Context {
	return withCaller(ctx, Caller{Host: name, Projects: []string{"**"}, Profiles: []string{"hermetic"}})
}

// Tokens is how many jobs' tokens are kept.
func (a *Authority) Tokens() int { return len(a.tokens.kept()) }

// InTurn is a call's context that has its turn.
func (a *Authority) InTurn(ctx context.Context) context.Context {
	turn, err := a.limits.running.enter(ctx, "", 1)
	if err != nil {
		panic(err)
	}
	return context.WithValue(ctx, roomKey{}, &room{a: a, running: turn})
}

// Running is how many calls have their turn.
func (a *Authority) Running() int64 {
	used, _ := a.limits.running.state()
	return used
}

// SetArriving spares tests sending arrivingBytes.
func (a *Authority) SetArriving(n int64) { a.limits.arrived.most = n }
