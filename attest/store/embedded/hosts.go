package embedded

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"hallmark.build/attest/store"
)

// Invite keeps an invitation, and lets go of those that expired.
func (s *Store) Invite(ctx context.Context, i store.Invitation) error {
	projects, profiles, err := rights(i.Projects, i.Profiles)
	if err != nil {
		return wrap(err)
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM invitations WHERE expires <= ?", i.Created.UnixMicro()); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "INSERT INTO invitations (token, host, projects, profiles, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
			i.TokenSHA256, i.Host, projects, profiles, i.Created.UnixMicro(), i.Expires.UnixMicro())
		return err
	})
}

func rights(projects, profiles []string) (string, string, error) {
	a, err := json.Marshal(projects)
	if err != nil {
		return "", "", err
	}
	b, err := json.Marshal(profiles)
	return string(a), string(b), err
}

// Enrol turns an invitation into a host.
func (s *Store) Enrol(ctx context.Context, tokenSHA256, keySHA256 string, now, expires time.Time) (store.Host, error) {
	var h store.Host
	err := s.transact(ctx, func(tx *sql.Tx) error {
		var name, projects, profiles string
		err := tx.QueryRowContext(ctx, "DELETE FROM invitations WHERE token = ? AND expires > ? RETURNING host, projects, profiles",
			tokenSHA256, now.UnixMicro()).Scan(&name, &projects, &profiles)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		if err := keyIsFree(ctx, tx, keySHA256, name); err != nil {
			return err
		}
		if _, err := uninvite(ctx, tx, name); err != nil {
			return err
		}
		h, err = scanHost(tx.QueryRowContext(ctx, `INSERT INTO hosts (name, key, projects, profiles, enrolled, expires) VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET key = excluded.key, projects = excluded.projects, profiles = excluded.profiles,
				enrolled = excluded.enrolled, expires = excluded.expires, revoked = 0
			RETURNING `+hostColumns, name, keySHA256, projects, profiles, now.UnixMicro(), expires.UnixMicro()))
		return err
	})
	return h, err
}

// uninvite voids all invitations of a host, and reports whether there was one.
func uninvite(ctx context.Context, tx *sql.Tx, host string) (bool, error) {
	res, err := tx.ExecContext(ctx, "DELETE FROM invitations WHERE host = ?", host)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// keyIsFree makes sure that a key names one host, a revoked one included.
func keyIsFree(ctx context.Context, tx *sql.Tx, key, host string) error {
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM hosts WHERE key = ? AND name <> ?", key, host).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return store.ErrConflict
	}
	return nil
}

// RenewHost replaces a host's key.
func (s *Store) RenewHost(ctx context.Context, name, oldKey, newKey string, expires time.Time) error {
	return s.transact(ctx, func(tx *sql.Tx) error {
		if err := keyIsFree(ctx, tx, newKey, name); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "UPDATE hosts SET key = ?, expires = ? WHERE name = ? AND key = ? AND revoked = 0",
			newKey, expires.UnixMicro(), name, oldKey)
		return one(res, err, store.ErrConflict)
	})
}

// RevokeHost ends a host's rights. The first time stands. A host that was only
// invited has none but its invitations.
func (s *Store) RevokeHost(ctx context.Context, name string, at time.Time) error {
	return s.transact(ctx, func(tx *sql.Tx) error {
		invited, err := uninvite(ctx, tx, name)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, "UPDATE hosts SET revoked = CASE revoked WHEN 0 THEN ? ELSE revoked END WHERE name = ?", at.UnixMicro(), name)
		if err := one(res, err, store.ErrNotFound); !invited || !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	})
}

const hostColumns = "name, key, projects, profiles, enrolled, expires, revoked"

func scanHost(r row) (store.Host, error) {
	var (
		h                          store.Host
		projects, profiles         string
		enrolled, expires, revoked int64
	)
	err := r.Scan(&h.Name, &h.KeySHA256, &projects, &profiles, &enrolled, &expires, &revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Host{}, store.ErrNotFound
	}
	if err != nil {
		return store.Host{}, err
	}
	if err := errors.Join(json.Unmarshal([]byte(projects), &h.Projects), json.Unmarshal([]byte(profiles), &h.Profiles)); err != nil {
		return store.Host{}, fmt.Errorf("host %s: %w", h.Name, err)
	}
	h.Enrolled, h.Expires, h.Revoked = instant(enrolled), instant(expires), instant(revoked)
	return h, nil
}

// Host finds a host by its name.
func (s *Store) Host(ctx context.Context, name string) (store.Host, error) {
	h, err := scanHost(s.db.QueryRowContext(ctx, "SELECT "+hostColumns+" FROM hosts WHERE name = ?", name))
	return h, wrap(err)
}

// Hosts lists all hosts by name.
func (s *Store) Hosts(ctx context.Context) ([]store.Host, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+hostColumns+" FROM hosts ORDER BY name")
	return collect(rows, err, scanHost)
}
