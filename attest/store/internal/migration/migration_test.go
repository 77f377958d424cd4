package migration_test

import (
	"testing"
	"testing/fstest"

	"hallmark.build/attest/store/internal/migration"
)

func TestRead(t *testing.T) {
	one, two := &fstest.MapFile{Data: []byte("one")}, &fstest.MapFile{Data: []byte("two")}
	steps, err := migration.Read(fstest.MapFS{"0002.sql": two, "0001.sql": one, "README": two})
	if err != nil || len(steps) != 2 || steps[0] != "one" || steps[1] != "two" {
		t.Errorf("%q, %v", steps, err)
	}
	for name, files := range map[string]fstest.MapFS{
		"a gap":        {"0001.sql": one, "0003.sql": two},
		"no first":     {"0002.sql": two},
		"another name": {"0001.sql": one, "0002-x.sql": two},
	} {
		if _, err := migration.Read(files); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
