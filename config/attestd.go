package config

import (
	"net/url"

	"hallmark.build/config/tomlfile"
)

// Attestd is the configuration of hallmark-attestd, the signing authority,
// which runs as a user of its own.
type Attestd struct {
	// Socket is the unix socket on which runner hosts are served. Default
	// "/run/hallmark-attestd/attestd.sock". A writer of this field can keep
	// hosts from finding the authority; peers are checked by Hosts.
	Socket string `toml:"socket"`
	// Hosts are the users, by name or number, that may speak as runner hosts on
	// the socket. Default ["root"]. A writer of this field can let another user
	// send evidence, and so have it signed.
	Hosts []string `toml:"hosts"`
	// HTTP is the host:port on which bundles and records are read. Default
	// "127.0.0.1:8470". It is served without TLS or passwords: put a reverse
	// proxy before it. A writer of this field can show bundles to more people.
	HTTP string `toml:"http"`
	// PublicURL is how people reach HTTP, for links. Default "": no links. A
	// writer of this field can send readers elsewhere; verification does not
	// depend on it.
	PublicURL string `toml:"public_url"`
	// StateDir holds the keys, the store and open attempts. Default
	// "/var/lib/hallmark-attestd". A reader of the directory can sign as this
	// authority.
	StateDir string `toml:"state_dir"`
	// GitLabURL is the GitLab whose jobs are attested; required. A writer of
	// this field can have the jobs of another GitLab attested as this one's.
	GitLabURL *url.URL `toml:"gitlab_url"`
	// GitLabCA is a PEM file with the roots that GitLab's certificate must
	// chain to. Default "": the host's roots. A writer of the file can
	// impersonate GitLab towards the authority.
	GitLabCA string `toml:"gitlab_ca"`
	// BuilderURI is the builder id without its last part, the profile;
	// required. Verifiers compare it byte for byte. A writer of this field can
	// sign under another name, which no policy expects.
	BuilderURI string `toml:"builder_uri"`
	// Issuer is the name of this authority in its certificates. Default: the
	// value of BuilderURI. What holds for BuilderURI holds for it.
	Issuer string `toml:"issuer"`

	// Digest is the SHA-256 of the file's bytes in lower-case hex.
	Digest string
}

// DefaultAttestd is the configuration before a file is read. What is required
// is missing from it.
func DefaultAttestd() Attestd {
	return Attestd{
		Socket:   "/run/hallmark-attestd/attestd.sock",
		Hosts:    []string{"root"},
		HTTP:     "127.0.0.1:8470",
		StateDir: "/var/lib/hallmark-attestd",
	}
}

// LoadAttestd reads hallmark-attestd's file. The error is [Errors] or an [*Error].
func LoadAttestd(path string) (Attestd, error) {
	data, err := tomlfile.Read(path)
	if err != nil {
		return Attestd{}, err
	}
	return ParseAttestd(path, data)
}

// ParseAttestd reads the bytes of hallmark-attestd's file; path is its name in errors.
func ParseAttestd(path string, data []byte) (Attestd, error) {
	doc, err := tomlfile.Parse(path, data)
	if err != nil {
		return Attestd{}, err
	}
	cfg := DefaultAttestd()
	doc.Decode(&cfg)
	if doc.Err() == nil {
		cfg.check(checker{doc})
	}
	if err := doc.Err(); err != nil {
		return Attestd{}, err
	}
	if cfg.Issuer == "" {
		cfg.Issuer = cfg.BuilderURI
	}
	cfg.Digest = digest(data)
	return cfg, nil
}

func (a *Attestd) check(c checker) {
	c.socket("socket", a.Socket)
	c.users("hosts", a.Hosts)
	c.listen("http", a.HTTP)
	c.identity("public_url", a.PublicURL)
	c.path("state_dir", a.StateDir)
	c.gitlabURL("gitlab_url", a.GitLabURL)
	c.optionalPath("gitlab_ca", a.GitLabCA)
	c.required("builder_uri", `as builder_uri = "https://ci.example.com/hallmark"`, a.BuilderURI)
	c.identity("builder_uri", a.BuilderURI)
	c.identity("issuer", a.Issuer)
}
