package executor

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCacheKeys(t *testing.T) {
	vars := []Variable{
		{Key: "BRANCH", Value: "main", Public: true},
		{Key: "BRANCH", Value: "topic", Public: true}, // the last one counts
		{Key: "NESTED", Value: "$BRANCH-x", Public: true},
		{Key: "RAW", Value: "$BRANCH", Public: true, Raw: true},
		{Key: "TELLS", Value: "x$SECRET", Public: true},
		{Key: "SECRET", Value: "s3cret", Masked: true},
	}
	for name, c := range map[string]struct {
		caches []Cache
		vars   []Variable
		want   []CacheKey
	}{
		"none":      {nil, vars, nil},
		"plain":     {[]Cache{{Key: "deps"}}, nil, []CacheKey{{"deps", "deps"}}},
		"default":   {[]Cache{{}}, nil, []CacheKey{{"compile/main", "compile/main"}}},
		"variable":  {[]Cache{{Key: "deps-$BRANCH"}}, vars, []CacheKey{{"deps-topic", "deps-topic"}}},
		"nested":    {[]Cache{{Key: "${NESTED}"}}, vars, []CacheKey{{"topic-x", "topic-x"}}},
		"raw":       {[]Cache{{Key: "$RAW"}}, vars, []CacheKey{{"$BRANCH", "$BRANCH"}}},
		"dollar":    {[]Cache{{Key: "a$$b"}}, vars, []CacheKey{{"a$b", "a$b"}}},
		"unknown":   {[]Cache{{Key: "a-$NOBODY"}}, vars, []CacheKey{{"a-", "a-"}}},
		"secret":    {[]Cache{{Key: "a-$SECRET"}}, vars, []CacheKey{{"a-s3cret", "a-$SECRET"}}},
		"told":      {[]Cache{{Key: "a-$TELLS"}}, vars, []CacheKey{{"a-xs3cret", "a-$TELLS"}}},
		"fallbacks": {[]Cache{{Key: "a", FallbackKeys: []string{"b-$BRANCH", "c"}}}, vars, []CacheKey{{"a", "a"}, {"b-topic", "b-topic"}, {"c", "c"}}},
		"by variable": {[]Cache{{Key: "a"}}, append(vars, Variable{Key: "CACHE_FALLBACK_KEY", Value: "z-$BRANCH", Public: true}),
			[]CacheKey{{"a", "a"}, {"z-topic", "z-topic"}}},
	} {
		t.Run(name, func(t *testing.T) {
			j := &Job{Caches: c.caches, Variables: c.vars, Info: JobInfo{Name: "compile"}, Git: GitInfo{Ref: "main"}}
			if diff := cmp.Diff(c.want, j.CacheKeys()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
