package embedded

import (
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/attest/store"
)

// TestPlans holds that no search looks at all bundles that there are, or at all of
// a project: a host can have many of them looked for.
func TestPlans(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	yes := true
	for name, c := range map[string]struct {
		only store.Filter
		want string // the index that it starts from
	}{
		"an output":           {store.Filter{}, "SEARCH subjects USING PRIMARY KEY (sha256=?)"},
		"a project's":         {store.Filter{Project: "group/project", Profile: "hermetic", Protected: &yes}, "SEARCH subjects USING PRIMARY KEY (sha256=?)"},
		"a job's":             {store.Filter{Job: 7}, "SEARCH a USING INDEX attempts_job (job_id=?)"},
		"of one bundle":       {store.Filter{Bundle: "x"}, "SEARCH b USING INDEX sqlite_autoindex_bundles_1 (sha256=?)"},
		"of one bundle's job": {store.Filter{Bundle: "x", Job: 7}, "SEARCH b USING INDEX sqlite_autoindex_bundles_1 (sha256=?)"},
	} {
		where, args := bySubject("x", c.only, 1)
		rows, err := s.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+selectFound+where, args...)
		plan, err := collect(rows, err, func(r row) (detail string, err error) {
			var id, parent, unused int
			return detail, r.Scan(&id, &parent, &unused, &detail)
		})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "\n")
		if strings.Contains(text, "SCAN") || strings.Contains(text, "attempts_project") || !strings.Contains(text, c.want) {
			t.Errorf("%s:\n%s", name, text)
		}
	}
}
