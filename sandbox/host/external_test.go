package host

import (
	"testing"

	"hallmark.build/executor"
)

// TestFullRef has names that are chosen to be taken for others.
func TestFullRef(t *testing.T) {
	for _, tt := range []struct{ ref, kind, want string }{
		{"main", "branch", "refs/heads/main"},
		{"v1", "tag", "refs/tags/v1"},
		{"refs/merge-requests/1/head", "branch", "refs/merge-requests/1/head"},
		{"refs/heads/main", "branch", "refs/heads/refs/heads/main"},
		{"refs/tags/v1", "branch", "refs/heads/refs/tags/v1"},
		{"refs/heads/main", "tag", "refs/tags/refs/heads/main"},
	} {
		if got := fullRef(executor.GitInfo{Ref: tt.ref, RefType: tt.kind}); got != tt.want {
			t.Errorf("%s %q is %q, want %q", tt.kind, tt.ref, got, tt.want)
		}
	}
}
