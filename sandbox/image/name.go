package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"hallmark.build/sandbox"
)

// maxName bounds an image's name. The longest that registries take is 255
// characters of repository, 128 of tag, and the registry's host.
const maxName = 512

// dockerHub is what people call the registry that answers as index.docker.io.
const dockerHub = "docker.io"

// registryForm is a lower-case host name, IPv4 or bracketed IPv6 address, with
// or without a port.
var registryForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

// A Name is an image's name with every default written out.
type Name struct {
	Registry   string // host or host:port; docker.io for Docker Hub
	Repository string
	Tag        string // "" if Digest is set
	Digest     string // "sha256:..." or ""
}

// String is the canonical form: what allow-lists are matched against.
func (n Name) String() string {
	if n.Digest != "" {
		return n.Registry + "/" + n.Repository + "@" + n.Digest
	}
	return n.Registry + "/" + n.Repository + ":" + n.Tag
}

// Parse reads an image's name as a job writes it. A tag beside a digest means
// nothing and is dropped. Errors are the user's.
func Parse(s string) (Name, error) {
	if s == "" || len(s) > maxName {
		return Name{}, badName(s)
	}
	for i := range len(s) {
		// Registries take no others; some parsers below do.
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:@[]", rune(s[i])) {
			return Name{}, badName(s)
		}
	}
	ref, err := name.ParseReference(s, name.WithDefaultRegistry(name.DefaultRegistry))
	if err != nil {
		return Name{}, badName(s)
	}
	repo := ref.Context()
	n := Name{Registry: repo.RegistryStr(), Repository: repo.RepositoryStr()}
	if n.Registry == name.DefaultRegistry {
		n.Registry = dockerHub
	}
	if !registryForm.MatchString(n.Registry) {
		return Name{}, badName(s)
	}
	for part := range strings.SplitSeq(n.Repository, "/") {
		if part == "" || part == "." || part == ".." {
			return Name{}, badName(s)
		}
	}
	switch r := ref.(type) {
	case name.Tag:
		n.Tag = r.TagStr()
	case name.Digest:
		n.Digest = r.DigestStr()
		if !strings.HasPrefix(n.Digest, "sha256:") {
			return Name{}, badName(s)
		}
	default:
		return Name{}, badName(s)
	}
	return n, nil
}

func badName(s string) error {
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return &sandbox.UserError{
		Err:  fmt.Errorf("image name %q: not a valid name", s),
		Hint: "write registry/repository:tag, e.g. docker.io/library/alpine:3.23",
	}
}

// ref is the name in the form that the registry client takes. Parse has
// accepted the same characters, so it cannot fail.
func (n Name) ref(plain bool) name.Reference {
	opts := []name.Option{name.StrictValidation}
	if plain {
		opts = append(opts, name.Insecure)
	}
	registry := n.Registry
	if registry == dockerHub {
		registry = name.DefaultRegistry
	}
	reg, _ := name.NewRegistry(registry, opts...)
	repo := reg.Repo(n.Repository)
	if n.Digest != "" {
		return repo.Digest(n.Digest)
	}
	return repo.Tag(n.Tag)
}
