package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"hallmark.build/attest/store"
)

// Invite keeps an invitation, and lets go of those that expired.
func (s *Store) Invite(ctx context.Context, i store.Invitation) error {
	projects, err := json.Marshal(i.Projects)
	if err != nil {
		return wrap(err)
	}
	profiles, err := json.Marshal(i.Profiles)
	if err != nil {
		return wrap(err)
	}
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM invitations WHERE expires <= $1", i.Created); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO invitations (token, host, projects, profiles, created, expires) VALUES ($1, $2, $3, $4, $5, $6)",
			i.TokenSHA256, i.Host, string(projects), string(profiles), i.Created, i.Expires)
		return err
	})
}

// Enrol turns an invitation into a host. Of several who use it at once, the
// others wait until it is gone.
func (s *Store) Enrol(ctx context.Context, tokenSHA256, keySHA256 string, now, expires time.Time) (store.Host, error) {
	var h store.Host
	err := s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var name, projects, profiles string
		err := tx.QueryRow(ctx, "DELETE FROM invitations WHERE token = $1 AND expires > $2 RETURNING host, projects, profiles",
			tokenSHA256, now).Scan(&name, &projects, &profiles)
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM invitations WHERE host = $1", name); err != nil {
			return err
		}
		hosts, err := collect(ctx, tx, scanHost, `INSERT INTO hosts (name, key, projects, profiles, enrolled, expires) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (name) DO UPDATE SET key = excluded.key, projects = excluded.projects, profiles = excluded.profiles,
				enrolled = excluded.enrolled, expires = excluded.expires, revoked = NULL
			RETURNING `+hostColumns, name, keySHA256, projects, profiles, now, expires)
		if err != nil {
			return err
		}
		h = hosts[0]
		return nil
	})
	return h, conflict(err)
}

// conflict tells that another host has the key, a revoked one included.
func conflict(err error) error {
	if hasCode(err, codeUnique) {
		return store.ErrConflict
	}
	return err
}

// RenewHost replaces a host's key.
func (s *Store) RenewHost(ctx context.Context, name, oldKey, newKey string, expires time.Time) error {
	return conflict(s.with(ctx, func(ctx context.Context, c conn) error {
		tag, err := c.Exec(ctx, "UPDATE hosts SET key = $1, expires = $2 WHERE name = $3 AND key = $4 AND revoked IS NULL",
			newKey, expires, name, oldKey)
		return one(tag, err, store.ErrConflict)
	}))
}

// RevokeHost ends a host's rights. The first time stands. A host that was only
// invited has none but its invitations.
func (s *Store) RevokeHost(ctx context.Context, name string, at time.Time) error {
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		invited, err := tx.Exec(ctx, "DELETE FROM invitations WHERE host = $1", name)
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "UPDATE hosts SET revoked = coalesce(revoked, $1) WHERE name = $2", at, name)
		if err := one(tag, err, store.ErrNotFound); invited.RowsAffected() == 0 || !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	})
}

const hostColumns = "name, key, projects, profiles, enrolled, expires, revoked"

func scanHost(r pgx.CollectableRow) (store.Host, error) {
	var (
		h                  store.Host
		projects, profiles string
		revoked            *time.Time
	)
	if err := r.Scan(&h.Name, &h.KeySHA256, &projects, &profiles, &h.Enrolled, &h.Expires, &revoked); err != nil {
		return h, err
	}
	if err := errors.Join(json.Unmarshal([]byte(projects), &h.Projects), json.Unmarshal([]byte(profiles), &h.Profiles)); err != nil {
		return h, fmt.Errorf("host %s: %w", h.Name, err)
	}
	h.Enrolled, h.Expires, h.Revoked = h.Enrolled.UTC(), h.Expires.UTC(), instant(revoked)
	return h, nil
}

// Host finds a host by its name.
func (s *Store) Host(ctx context.Context, name string) (store.Host, error) {
	return get(ctx, s, scanHost, "SELECT "+hostColumns+" FROM hosts WHERE name = $1", name)
}

// Hosts lists all hosts by name.
func (s *Store) Hosts(ctx context.Context) ([]store.Host, error) {
	return list(ctx, s, scanHost, "SELECT "+hostColumns+" FROM hosts ORDER BY name")
}
