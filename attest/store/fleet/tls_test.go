package fleet_test

import (
	"crypto/x509"
	"strings"
	"testing"

	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
)

func TestTLS(t *testing.T) {
	o := running.Fresh(t)
	o.Database = running.RemoteURL(o.Bucket)
	storetest.Fill(t, open(t, o))
	for name, change := range map[string]func(*fleet.Options){
		"database of another name": func(o *fleet.Options) { o.Database = strings.Replace(o.Database, "127.0.0.1", "localhost", 1) },
		"database of other roots":  func(o *fleet.Options) { o.Database, _, _ = strings.Cut(o.Database, "&sslrootcert") },
		"bucket of other roots":    func(o *fleet.Options) { o.Roots = x509.NewCertPool() },
		"bucket of another name":   func(o *fleet.Options) { o.Endpoint = strings.Replace(o.Endpoint, "127.0.0.1", "localhost", 1) },
	} {
		other := o
		change(&other)
		if s, err := fleet.Open(t.Context(), other); !contains(err, "x509") && !contains(err, "certificate") {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

// TestPlaintext has URLs that would speak to another machine without knowing
// which.
func TestPlaintext(t *testing.T) {
	good := running.Fresh(t)
	for _, c := range []struct{ database, endpoint, why string }{
		{"postgres://h@db.example.com/h", good.Endpoint, "verify-full"},
		{"postgres://h@db.example.com/h?sslmode=require", good.Endpoint, "verify-full"},
		{"postgres://h@db.example.com/h?sslmode=verify-ca", good.Endpoint, "verify-full"},
		{"postgres:///h?host=db.example.com", good.Endpoint, "verify-full"},
		{"postgres://h@localhost,db.example.com/h", good.Endpoint, "verify-full"},
		{"postgres://h@localhost/h?host=/run/postgresql,db.example.com", good.Endpoint, "verify-full"},
		{"postgres://h@db.example.com/h?sslmode=verify-full&sslmode=disable&sslmode=prefer", good.Endpoint, "verify-full"},
		{"host=db.example.com", good.Endpoint, "verify-full"},
		{"mysql://h@localhost/h", good.Endpoint, "cannot parse"},
		{good.Database, "http://s3.example.com", "https"},
		{good.Database, "s3.example.com", "want a URL"},
		{good.Database, "https://s3.example.com/path", "want a URL"},
		{good.Database, "ftp://127.0.0.1", "https"},
	} {
		o := good
		o.Database, o.Endpoint = c.database, c.endpoint
		if _, err := fleet.Open(t.Context(), o); !contains(err, c.why) {
			t.Errorf("%s, %s: %v", c.database, c.endpoint, err)
		}
	}
}
