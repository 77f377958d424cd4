package sign

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hallmark.build/attest/internal/private"
)

// Overlap is how long a key that is rotated out may still sign after its
// successor has begun: replicas need not change over at the same moment.
const Overlap = LeafLifetime

// Generations lists the keys in a keyring's directory, oldest first.
func Generations(dir string) ([]Generation, error) {
	if err := private.Dir(dir); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	all, err := readKeyring(dir)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return all, nil
}

// Rotate makes a new generation, whose key starts to sign after a while and
// takes over from the one before. Signers that are open notice by themselves.
func Rotate(ctx context.Context, o Options, role Role, after time.Duration) (Generation, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Generation{}, err
	}
	if o.external(role) {
		return Generation{}, fmt.Errorf("sign: an outside service does what a %s key would", role)
	}
	if err := private.Dir(o.Dir); err != nil {
		return Generation{}, fmt.Errorf("sign: %w", err)
	}
	var made Generation
	err = change(o, func(all []Generation, now time.Time) ([]Generation, error) {
		var err error
		if made, err = addGeneration(ctx, o.Dir, role, o.uri(role), now.Add(after)); err != nil {
			return nil, err
		}
		return succeed(all, made, now)
	})
	if err != nil {
		return Generation{}, fmt.Errorf("sign: rotate: %w", err)
	}
	return made, nil
}

// succeed lets a new generation follow the others of its role.
func succeed(all []Generation, made Generation, now time.Time) ([]Generation, error) {
	out := slices.Clone(all)
	for i, g := range out {
		switch {
		case g.ID == made.ID:
			return nil, fmt.Errorf("%s is in the keyring already: make another key, and name it in the configuration", g.ID)
		case g.Role != made.Role || g.Revoked:
		case g.From.After(now):
			return nil, fmt.Errorf("%s is to take over at %s already: revoke it first, or wait", g.ID, g.From.Format(time.RFC3339))
		case g.Until.After(made.From.Add(Overlap)):
			out[i].Until = made.From.Add(Overlap)
		}
	}
	return append(out, made), nil
}

// Revoke ends the trust in a key at the moment it was lost: what it signed
// until then stays good, what came later does not. The zero time means never:
// nothing that the key signed is good. The key does not sign again.
func Revoke(o Options, id string, lost time.Time) (Generation, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Generation{}, err
	}
	if err := private.Dir(o.Dir); err != nil {
		return Generation{}, fmt.Errorf("sign: %w", err)
	}
	var revoked Generation
	err = change(o, func(all []Generation, now time.Time) ([]Generation, error) {
		if lost.After(now) {
			return nil, fmt.Errorf("%s is yet to come", lost.Format(time.RFC3339))
		}
		i := slices.IndexFunc(all, func(g Generation) bool { return g.ID == id })
		if i < 0 {
			return nil, fmt.Errorf("%q is not in the keyring", id)
		}
		all[i].revoke(lost.UTC().Truncate(time.Second))
		revoked = all[i]
		return all, nil
	})
	if err != nil {
		return Generation{}, fmt.Errorf("sign: revoke: %w", err)
	}
	return revoked, nil
}

// revoke never makes a window wider: a key that was revoked can be revoked once
// more from an earlier moment, and no other way.
func (g *Generation) revoke(lost time.Time) {
	g.Revoked = true
	if lost.Before(g.From) {
		lost = g.From
	}
	if lost.Before(g.Until) {
		g.Until = lost
	}
}

// ensure makes the first generation of each role that has none. It never
// replaces a key that has ended: new trust is for people to give.
func ensure(ctx context.Context, o Options) error {
	for _, role := range []Role{RoleCA, RoleTimestamp} {
		if o.external(role) {
			continue
		}
		all, err := readKeyring(o.Dir)
		if err != nil {
			return err
		}
		if hasRole(all, role) {
			continue
		}
		if err := first(ctx, o, role); err != nil {
			return err
		}
	}
	return nil
}

var errThere = errors.New("another process was faster")

func first(ctx context.Context, o Options, role Role) error {
	err := change(o, func(all []Generation, now time.Time) ([]Generation, error) {
		if hasRole(all, role) {
			return nil, errThere
		}
		g, err := addGeneration(ctx, o.Dir, role, o.uri(role), now)
		return append(all, g), err
	})
	if errors.Is(err, errThere) {
		return nil
	}
	return err
}

func hasRole(all []Generation, role Role) bool {
	return slices.ContainsFunc(all, func(g Generation) bool { return g.Role == role })
}
