// Package fleet is the store of several authorities at once: PostgreSQL and a bucket of S3-compatible object storage.
//
// # Layout
//
// The database has attempts, records, what was signed and is not closed yet,
// which bundle is about what, and hosts. The bucket has the bundles alone, as
// bundles/SHA-256, never changed. Who writes to the bucket can make a bundle
// unreadable, but cannot change it unnoticed: it is checked when read.
//
// # Replicas
//
// Any number of replicas serve at once. [Store.Lock] is an advisory lock of
// PostgreSQL, held by one connection. What is written under the context that it
// returns is written on that very connection: if the connection was lost, and
// so the lock, the write cannot happen. Each change of an attempt also names
// the state that it starts from, and unique indexes see to one open and one
// attested attempt of a job, so even writes without a lock cannot decide
// twice. Within a replica, calls about one job wait for each other before they
// take a connection.
//
// A replica that stops without going away, its machine asleep, holds its locks
// until the database ends the idle session, after [maxHold]. If it wakes up
// then, its writes fail.
//
// A replica takes up to 112 connections when it is busy, which PostgreSQL must
// allow (max_connections). Advisory locks belong to sessions: a pooler before
// the database must give each client a session of its own.
//
// Replicas have more in common than the store: see [Store.Agree].
//
// # Crashes
//
// Records are appended and attempts are signed in one transaction each. To
// close an attempt, the digests of its bundles are noted in the table uploads;
// then they are put in the bucket; then one transaction makes the decision and
// strikes them out. After a crash in between, a retry puts them there again,
// and [Store.Sweep] removes what was noted long ago and not decided. It takes
// each note for itself first, and a decision that does not find its notes
// fails, so nothing is removed that a decision relies on. While the bucket is
// out of reach, attempts can still be opened, appended to and signed: closing
// them waits.
//
// Deadlocks and serialization failures are tried again here. Every call has a
// deadline, on both sides of the connection.
//
// # Migrations
//
// The table schema_version has the number of the last step in migrations that
// was taken. Opening the store takes the rest, under an advisory lock, each in
// a transaction of its own. A schema that is further than the program is
// refused. Replicas of two versions may run side by side while they are
// replaced: a step only ever adds.
//
// # Backup
//
// First dump the database, then copy the bucket:
//
//	pg_dump --format=custom --file=hallmark.dump "$DATABASE"
//	rclone copy --immutable s3:BUCKET/bundles DIR/bundles
//
// The dump is a snapshot; bundles are in the bucket before a decision is in the
// database, and are never changed or removed once it is. So a copy that was
// begun after the dump has every bundle that the dump names. To restore: stop
// all replicas, fill a new bucket, load the dump into an empty database, and
// run
//
//	hallmark-attestd restored
//	hallmark-attestd check
//
// The table home says in which cluster and database the schema was made. Loaded
// into another, it does not fit, and the store is not opened before restored
// settled it: see package store. The check names bundles that were closed after
// the dump: they are in the bucket and in the log, and nothing removes them. A
// cluster that was copied as a whole, or
// upgraded in place, keeps or changes its name for reasons of its own: run
// restored if and only if it lacks what was acknowledged, or if it is asked for.
package fleet

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hallmark.build/attest/internal/private"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/internal/turns"
)

// Bounds of one replica's use of the database.
const (
	maxConnections = 16               // for calls without a lock
	maxLocks       = 96               // jobs at a time, each with a connection
	maxCall        = 30 * time.Second // for one call
	maxConnect     = 10 * time.Second
	maxHold        = 3 * time.Minute // for a lock whose holder does nothing
)

// Options say where the database and the bucket are.
type Options struct {
	Database  string // URL
	Password  string // of the database; may be empty
	Endpoint  string // URL of the object storage
	Region    string
	Bucket    string
	AccessKey string
	SecretKey string
	Roots     *x509.CertPool // of the object storage's TLS; nil means the system's

	hold time.Duration // maxHold, in tests less
}

// ReadSecrets reads the database's password, if there is a file of it, and the
// access and secret key of the object storage, on two lines.
func (o *Options) ReadSecrets(passwordFile, credentialsFile string) error {
	if passwordFile != "" {
		lines, err := private.ReadLines(passwordFile, 1)
		if err != nil {
			return fmt.Errorf("database password: %w", err)
		}
		o.Password = lines[0]
	}
	lines, err := private.ReadLines(credentialsFile, 2)
	if err != nil {
		return fmt.Errorf("object storage's credentials: %w", err)
	}
	o.AccessKey, o.SecretKey = lines[0], lines[1]
	return nil
}

// A Store is one replica's view of the fleet's store.
type Store struct {
	pool   *pgxpool.Pool
	locks  *pgxpool.Pool
	bucket *bucket
	jobs   turns.Turns
}

var _ store.Store = (*Store)(nil)

// Open connects, and brings the schema up to date.
func Open(ctx context.Context, o Options) (*Store, error) {
	return open(ctx, o, mustBeHome)
}

// Restored settles a store that was restored from a backup: attempts that it
// has as open are refused, and it is at home where it is now. It returns their
// names.
func Restored(ctx context.Context, o Options, at time.Time) ([]string, error) {
	var ended []string
	s, err := open(ctx, o, func(ctx context.Context, c *pgx.Conn) (err error) {
		ended, err = settle(ctx, c, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ended, s.Close()
}

// open asks atHome about the database once its schema is up to date.
func open(ctx context.Context, o Options, atHome func(context.Context, *pgx.Conn) error) (*Store, error) {
	if err := checkEndpoint(o.Endpoint); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	b, err := openBucket(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := prepare(ctx, o, atHome); err != nil {
		return nil, wrap(err)
	}
	s := &Store{bucket: b}
	if s.pool, err = connect(ctx, o, maxConnections, nil); err != nil {
		return nil, fmt.Errorf("store: database: %w", err)
	}
	held := map[string]string{"idle_session_timeout": millis(cmp.Or(o.hold, maxHold))}
	if s.locks, err = connect(ctx, o, maxLocks, held); err != nil {
		return nil, errors.Join(fmt.Errorf("store: database: %w", err), s.Close())
	}
	return s, nil
}

// checkEndpoint refuses to speak to another machine without TLS.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Path != "" && u.Path != "/":
		return errors.New("endpoint: want a URL as https://HOST, with no path")
	case u.Scheme != "https" && (u.Scheme != "http" || !local(u.Hostname())):
		return fmt.Errorf("endpoint: %s is another machine: its URL must be https", u.Host)
	}
	return nil
}

// local tells a socket's directory and this machine's own addresses.
func local(host string) bool {
	return strings.HasPrefix(host, "/") || slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, host)
}

// Close gives the connections back. Locks that are still held are lost.
func (s *Store) Close() error {
	for _, p := range []*pgxpool.Pool{s.locks, s.pool} {
		if p != nil {
			p.Close()
		}
	}
	return nil
}

// Ready reports whether the database answers. The bucket may be out of reach
// for a while without a job's noticing.
func (s *Store) Ready(ctx context.Context) error {
	return s.with(ctx, func(ctx context.Context, c conn) error {
		var n int
		return c.QueryRow(ctx, "SELECT 1 FROM attempts LIMIT 1").Scan(&n)
	}, pgx.ErrNoRows)
}
