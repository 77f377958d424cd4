package config

import (
	"net"
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
	// Listen is the host:port on which enrolled runner hosts are served over
	// mutual TLS. Default "": hosts on other machines are not served. A writer of
	// this field can keep hosts from finding the authority; who may speak is
	// decided by the certificates that it issued.
	Listen string `toml:"listen"`
	// ServerNames are the names and addresses by which hosts reach Listen; they
	// go into the server's certificate. Default []: the host of Listen. A writer
	// of this field can keep hosts from trusting the connection.
	ServerNames []string `toml:"server_names"`
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
	// GitLabTokenFile holds a token of the authority's own that may read the
	// GitLab's jobs, for jobs whose own token has ended. Default "": such jobs
	// cannot be confirmed any more. A reader of the file can read those jobs.
	GitLabTokenFile string `toml:"gitlab_token_file"`
	// GitLabUnavailable says what happens when GitLab does not answer as a job
	// is closed: "fail" refuses, "spool" attests once it has confirmed the job.
	// Default "fail". A writer of this field cannot have a job attested that
	// GitLab does not confirm.
	GitLabUnavailable string `toml:"gitlab_unavailable"`
	// IDTokenAudience is the audience of the jobs' ID tokens that are taken as
	// evidence. Default: the value of Issuer. A writer of this field can have
	// tokens ignored; they are never needed, and never sign.
	IDTokenAudience string `toml:"id_token_audience"`
	// TrustedRoot is a trusted root in Sigstore's JSON, of the Fulcio, timestamp
	// authority and log that are named by URL. Default "": none is. A writer of the
	// file can have other services believed; it is part of what readers are told to trust.
	// Where it has certificate transparency logs, one of them must have promised to
	// list each certificate of that Fulcio; where it has none, nobody need have.
	TrustedRoot string `toml:"trusted_root"`
	// BuilderURI is the builder id without its last part, the profile;
	// required. Verifiers compare it byte for byte. A writer of this field can
	// sign under another name, which no policy expects.
	BuilderURI string `toml:"builder_uri"`
	// Issuer is the name of this authority in its certificates. Default: the
	// value of BuilderURI. What holds for BuilderURI holds for it.
	Issuer string `toml:"issuer"`

	Keys      Keys       `toml:"keys"`
	Fulcio    Fulcio     `toml:"fulcio"`
	Timestamp Timestamp  `toml:"timestamp"`
	Log       Log        `toml:"log"`
	Store     Store      `toml:"store"`
	Limits    HostLimits `toml:"limits"`

	// Digest is the SHA-256 of the file's bytes in lower-case hex.
	Digest string
}

// Keys says where the private keys are: each a URI, "file:///PATH",
// "pkcs11:…" (RFC 7512), or "NAME://…" for a key management service that
// Sigstore's plugin sigstore-kms-NAME speaks to. A writer of these can have
// another key sign, which no trusted root names.
type Keys struct {
	// CA issues the signing certificates. Default "": a file in StateDir.
	CA string `toml:"ca"`
	// Timestamp signs time. Default "": a file in StateDir.
	Timestamp string `toml:"timestamp"`
	// Log signs checkpoints. Default "": a file in StateDir.
	Log string `toml:"log"`
}

// Fulcio is a certificate authority that is used instead of the built-in one.
// A writer of these can have signatures carry another identity, which no policy
// expects.
type Fulcio struct {
	// URL of the service. Default "": the built-in certificate authority.
	URL string `toml:"url"`
	// CA is a PEM file with the roots for the service's TLS. Default "": the host's roots.
	CA string `toml:"ca"`
	// TokenFile holds the authority's own OIDC token, read anew for each
	// certificate; required with URL.
	TokenFile string `toml:"token_file"`
	// Identity is what the certificates must name; required with URL.
	Identity string `toml:"identity"`
	// IdentityIssuer is the OIDC issuer that they must name; required with URL.
	IdentityIssuer string `toml:"identity_issuer"`
}

// Timestamp is an RFC 3161 timestamp authority that is used instead of the
// built-in one. A writer of these can keep jobs from being attested.
type Timestamp struct {
	// URL of the service. Default "": the built-in timestamp authority.
	URL string `toml:"url"`
	// CA is a PEM file with the roots for the service's TLS. Default "": the host's roots.
	CA string `toml:"ca"`
}

// The kinds of transparency logs.
const (
	LogBuiltIn = "built-in"
	LogRekor   = "rekor"
	LogNone    = "none"
)

// Log is the transparency log in which every signature is entered. A writer of
// these can have signatures stay out of the log, which verifiers that ask
// for it then refuse.
type Log struct {
	// Kind is "built-in" (in StateDir, of one authority that shares no database),
	// "rekor" (version 2, by URL) or "none". Default "built-in".
	Kind string `toml:"kind"`
	// URL of the Rekor; required with its kind. Default "".
	URL string `toml:"url"`
	// CA is a PEM file with the roots for the service's TLS. Default "": the host's roots.
	CA string `toml:"ca"`
	// Background are the profiles whose jobs do not wait for the log's proof:
	// their bundles appear once they have it. Default []: every job waits.
	Background []string `toml:"background"`
	// WitnessPolicy is a file that names the witnesses whose signatures a
	// checkpoint of the built-in log must have. Default "": none.
	WitnessPolicy string `toml:"witness_policy"`
}

// Store says where attempts, records and bundles are kept. A writer of these
// can make the authority forget what it decided, and so decide again.
type Store struct {
	// Database is the URL of a PostgreSQL that all replicas share, without a
	// password. Default "": an embedded database in StateDir, for one process.
	Database string `toml:"database"`
	// DatabasePasswordFile holds the password. Default "": none is needed.
	DatabasePasswordFile string `toml:"database_password_file"`
	// Bucket of the S3-compatible object storage for bundles; required with Database.
	Bucket string `toml:"bucket"`
	// Endpoint is the URL of the object storage; required with Database.
	Endpoint string `toml:"endpoint"`
	// EndpointCA is a PEM file with the roots for its TLS. Default "": the host's roots.
	EndpointCA string `toml:"endpoint_ca"`
	// Region of the object storage. Default "us-east-1".
	Region string `toml:"region"`
	// CredentialsFile has the object storage's access key and, on a second
	// line, its secret key; required with Database.
	CredentialsFile string `toml:"credentials_file"`
}

// HostLimits bound what one runner host may take from the others. A writer of
// these can let a host starve the rest.
type HostLimits struct {
	// Calls that one host may have in flight. Default 32.
	Calls int `toml:"calls"`
	// OpenAttempts that one host may have. Default 1024.
	OpenAttempts int `toml:"open_attempts"`
	// OpensPerMinute that one host may ask for. Default 600.
	OpensPerMinute int `toml:"opens_per_minute"`
}

// DefaultAttestd is the configuration before a file is read. What is required
// is missing from it.
func DefaultAttestd() Attestd {
	return Attestd{
		Socket:   "/run/hallmark-attestd/attestd.sock",
		Hosts:    []string{"root"},
		HTTP:     "127.0.0.1:8470",
		StateDir: "/var/lib/hallmark-attestd",

		GitLabUnavailable: "fail",
		Log:               Log{Kind: LogBuiltIn},
		Store:             Store{Region: "us-east-1"},
		Limits:            HostLimits{Calls: 32, OpenAttempts: 1024, OpensPerMinute: 600},
	}
}

// LoadAttestd reads hallmark-attestd's file. The error is [Errors] or an [*Error].
func LoadAttestd(path string) (Attestd, error) {
	data, err := read(KindAttestd, path)
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
	if cfg.IDTokenAudience == "" {
		cfg.IDTokenAudience = cfg.Issuer
	}
	if host, _, err := net.SplitHostPort(cfg.Listen); err == nil && len(cfg.ServerNames) == 0 && host != "" {
		cfg.ServerNames = []string{host}
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
	if a.Listen != "" {
		c.listen("listen", a.Listen)
	}
	c.hostNames("server_names", a.ServerNames)
	c.optionalPath("gitlab_token_file", a.GitLabTokenFile)
	c.oneOf("gitlab_unavailable", a.GitLabUnavailable, "fail", "spool")
	c.text("id_token_audience", a.IDTokenAudience)
	c.optionalPath("trusted_root", a.TrustedRoot)
	if a.TrustedRoot == "" && (a.Fulcio.URL != "" || a.Timestamp.URL != "" || a.Log.Kind == LogRekor) {
		c.required("trusted_root", "services that are named by URL are believed by what it says", "")
	}
	if a.Store.Database != "" && a.Log.Kind == LogBuiltIn {
		c.doc.Report("log.kind", `set kind = "rekor", a log that all use, or "none"`, "replicas that share a database would each keep a log of their own")
	}
	a.Keys.check(c)
	a.Fulcio.check(c)
	c.identity("timestamp.url", a.Timestamp.URL)
	c.optionalPath("timestamp.ca", a.Timestamp.CA)
	a.Log.check(c)
	a.Store.check(c)
	a.Limits.check(c)
}

func (k Keys) check(c checker) {
	c.key("keys.ca", k.CA)
	c.key("keys.timestamp", k.Timestamp)
	c.key("keys.log", k.Log)
}

func (f Fulcio) check(c checker) {
	c.identity("fulcio.url", f.URL)
	c.optionalPath("fulcio.ca", f.CA)
	c.optionalPath("fulcio.token_file", f.TokenFile)
	c.text("fulcio.identity", f.Identity)
	c.text("fulcio.identity_issuer", f.IdentityIssuer)
	if f.URL != "" {
		c.required("fulcio.token_file", "the authority signs under an OIDC identity of its own, never a job's", f.TokenFile)
		c.required("fulcio.identity", "the identity in that token, as Fulcio writes it", f.Identity)
		c.required("fulcio.identity_issuer", "the issuer of that token", f.IdentityIssuer)
	}
}

func (l Log) check(c checker) {
	c.oneOf("log.kind", l.Kind, LogBuiltIn, LogRekor, LogNone)
	c.identity("log.url", l.URL)
	c.optionalPath("log.ca", l.CA)
	for i, profile := range l.Background {
		c.oneOf(at("log.background", i), profile, "hermetic", "firewalled")
	}
	c.unique("log.background", l.Background)
	c.optionalPath("log.witness_policy", l.WitnessPolicy)
	switch {
	case l.Kind == LogRekor:
		c.required("log.url", `as url = "https://rekor.example.com"`, l.URL)
	case l.URL != "":
		c.doc.Report("log.url", `set kind = "rekor"`, "a log of kind %q has no URL", l.Kind)
	}
	if l.WitnessPolicy != "" && l.Kind != LogBuiltIn {
		c.doc.Report("log.witness_policy", "a Rekor has witnesses of its own", "only the built-in log asks witnesses")
	}
}

func (s Store) check(c checker) {
	c.database("store.database", s.Database)
	c.optionalPath("store.database_password_file", s.DatabasePasswordFile)
	c.text("store.bucket", s.Bucket)
	c.identity("store.endpoint", s.Endpoint)
	c.optionalPath("store.endpoint_ca", s.EndpointCA)
	c.text("store.region", s.Region)
	c.optionalPath("store.credentials_file", s.CredentialsFile)
	if s.Database != "" {
		c.required("store.bucket", "bundles are kept in object storage", s.Bucket)
		c.required("store.endpoint", `as endpoint = "https://s3.example.com"`, s.Endpoint)
		c.required("store.credentials_file", "two lines: access key and secret key", s.CredentialsFile)
	} else if s.Bucket != "" {
		c.doc.Report("store.bucket", "set store.database, or leave the bucket off", "the embedded store keeps bundles itself")
	}
}

func (l HostLimits) check(c checker) {
	c.between("limits.calls", int64(l.Calls), 1, 4096)
	c.between("limits.open_attempts", int64(l.OpenAttempts), 1, 1<<20)
	c.between("limits.opens_per_minute", int64(l.OpensPerMinute), 1, 1<<20)
}
