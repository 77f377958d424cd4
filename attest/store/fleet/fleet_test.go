package fleet_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
	"hallmark.build/integration/servers"
)

var running *servers.Servers

func TestMain(m *testing.M) {
	var err error
	if running, err = servers.Start(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	running.Stop()
	os.Exit(code)
}

func open(t testing.TB, o fleet.Options) *fleet.Store {
	t.Helper()
	s, err := fleet.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	at := map[string]fleet.Options{} // by the directory that stands for a place
	storetest.Run(t, func(t *testing.T, dir string) (store.Store, func()) {
		if _, ok := at[dir]; !ok {
			at[dir] = running.Fresh(t)
		}
		s := open(t, at[dir])
		return s, func() { s.Close() }
	})
}

func contains(err error, word string) bool { return err != nil && strings.Contains(err.Error(), word) }
