module hallmark.build

go 1.26.8

// Each direct dependency says what it is for. Whom we trust with keys and
// tenants is checked per binary in integration/law.
require (
	github.com/BurntSushi/toml v1.6.0 // configuration in the format of gitlab-runner's own; positions of errors
	github.com/ThalesGroup/crypto11 v1.6.2 // keys in PKCS#11 tokens; linked by hallmark-pkcs11 alone
	github.com/VictoriaMetrics/metrics v1.45.0 // counters and histograms of the authority, as Prometheus reads them
	github.com/bmatcuk/doublestar/v4 v4.10.0 // globs as GitLab Runner's allowed_images has them
	github.com/containerd/containerd/api v1.11.1 // options of containerd's runc shim
	github.com/containerd/containerd/v2 v2.3.7 // the container runtime's client and seccomp profile (LTS line 2.3)
	github.com/containerd/errdefs v1.0.0 // containerd's error classes
	github.com/containerd/log v0.1.0 // containerd's client logs through it: turned to our logger
	github.com/containerd/platforms v1.0.0-rc.5 // names of platforms as containerd has them
	github.com/digitorus/timestamp v0.0.0-20231217203849-220c5c2851b7 // RFC 3161, as Sigstore's own timestamp authority uses it
	github.com/go-jose/go-jose/v4 v4.1.9 // signatures of GitLab's ID tokens
	github.com/google/certificate-transparency-go v1.3.3 // signed certificate timestamps, as sigstore-go has it
	github.com/google/go-cmp v0.7.0 // tests
	github.com/google/go-containerregistry v0.22.1 // names, manifests and registries of images
	github.com/google/nftables v0.3.0 // the steering rule inside a job's network namespace
	github.com/in-toto/attestation v1.2.0 // tests: statements are valid to the format's own library
	github.com/jackc/pgx/v5 v5.12.0 // PostgreSQL, for a fleet of authorities
	github.com/miekg/pkcs11 v1.1.2 // state of a PKCS#11 token; linked by hallmark-pkcs11 alone
	github.com/minio/minio-go/v7 v7.4.1 // S3-compatible object storage, for a fleet of authorities
	github.com/opencontainers/go-digest v1.0.0 // type of the digests that image-spec and containerd take
	github.com/opencontainers/image-spec v1.1.1 // types of image configuration
	github.com/opencontainers/runtime-spec v1.3.0 // types of a container's specification
	github.com/pjbgf/sha1cd v0.7.0 // SHA-1 with collision detection, for Git's objects
	github.com/rogpeppe/go-internal v1.16.0 // tests: sessions of commands
	github.com/sigstore/protobuf-specs v0.5.2 // types of Sigstore's bundle and trusted root
	github.com/sigstore/sigstore v1.10.8 // tests: signers for the TUF repository, the library of key plugins
	github.com/sigstore/sigstore-go v1.3.0 // verification; linked by hallmark alone
	github.com/sigstore/timestamp-authority/v2 v2.1.3 // verification of RFC 3161 answers, as sigstore-go has it
	github.com/sirupsen/logrus v1.10.2 // behind containerd/log
	github.com/spf13/cobra v1.10.2 // the auditor's command line; linked by hallmark alone
	github.com/theupdateframework/go-tuf/v2 v2.4.2 // tests: the TUF repository of a Sigstore
	github.com/transparency-dev/formats v0.1.1 // the signatures of witnesses
	github.com/transparency-dev/merkle v0.0.2 // proofs of inclusion and consistency
	github.com/transparency-dev/tessera v1.0.4 // the transparency log: tiles, batches, witnesses
	github.com/vishvananda/netlink v1.3.1 // links and routes of a job's network namespace
	go.yaml.in/yaml/v3 v3.0.5 // tests: .gitlab-ci.yml of sample projects
	golang.org/x/mod v0.42.0 // signed notes
	golang.org/x/net v0.62.0 // DNS messages, internationalised host names
	golang.org/x/sync v0.24.0 // groups of goroutines that fail together
	golang.org/x/sys v0.50.0 // system calls that package syscall lacks
	golang.org/x/text v0.43.0 // Unicode normal forms: names in archives that look alike; encodings that .gitattributes ask for
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // details of refusals: which limit, when to ask again
	google.golang.org/grpc v1.85.0 // between a runner host and the authority
	google.golang.org/protobuf v1.36.12 // the same, and Sigstore's JSON
	k8s.io/klog/v2 v2.140.0 // behind tessera: turned to our logger
	modernc.org/sqlite v1.61.1 // the authority's index, without cgo
)

require (
	filippo.io/mldsa v0.0.0-20260215214346-43d0283efc3e // indirect
	github.com/Microsoft/go-winio v0.6.3-0.20251027160822-ad3df93bed29 // indirect
	github.com/Microsoft/hcsshim v0.15.0-rc.1 // indirect
	github.com/asaskevich/govalidator v0.0.0-20230301143203-a9d515a09cc2 // indirect
	github.com/blang/semver v3.5.1+incompatible // indirect
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/containerd/cgroups/v3 v3.1.3 // indirect
	github.com/containerd/continuity v0.5.0 // indirect
	github.com/containerd/errdefs/pkg v0.3.0 // indirect
	github.com/containerd/fifo v1.1.0 // indirect
	github.com/containerd/plugin v1.1.0 // indirect
	github.com/containerd/ttrpc v1.2.8 // indirect
	github.com/containerd/typeurl/v2 v2.2.3 // indirect
	github.com/cyberphone/json-canonicalization v0.0.0-20241213102144-19d51d7fe467 // indirect
	github.com/digitorus/pkcs7 v0.0.0-20230818184609-3a137a874352 // indirect
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/cli v29.7.2+incompatible // indirect
	github.com/docker/docker-credential-helpers v0.9.3 // indirect
	github.com/dustin/go-humanize v1.1.0 // indirect
	github.com/felixge/httpsnoop v1.0.4 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/go-openapi/analysis v0.25.5 // indirect
	github.com/go-openapi/errors v0.22.8 // indirect
	github.com/go-openapi/jsonpointer v1.0.0 // indirect
	github.com/go-openapi/jsonreference v1.0.0 // indirect
	github.com/go-openapi/loads v0.25.0 // indirect
	github.com/go-openapi/runtime v0.33.0 // indirect
	github.com/go-openapi/runtime/server-middleware v0.30.0 // indirect
	github.com/go-openapi/spec v0.22.9 // indirect
	github.com/go-openapi/strfmt v0.27.0 // indirect
	github.com/go-openapi/swag v0.26.1 // indirect
	github.com/go-openapi/swag/cmdutils v0.27.0 // indirect
	github.com/go-openapi/swag/conv v0.27.3 // indirect
	github.com/go-openapi/swag/fileutils v0.27.3 // indirect
	github.com/go-openapi/swag/jsonname v0.26.1 // indirect
	github.com/go-openapi/swag/jsonutils v0.27.3 // indirect
	github.com/go-openapi/swag/loading v0.27.3 // indirect
	github.com/go-openapi/swag/mangling v0.27.3 // indirect
	github.com/go-openapi/swag/netutils v0.27.0 // indirect
	github.com/go-openapi/swag/pools v0.27.3 // indirect
	github.com/go-openapi/swag/stringutils v0.27.3 // indirect
	github.com/go-openapi/swag/typeutils v0.27.3 // indirect
	github.com/go-openapi/swag/yamlutils v0.27.3 // indirect
	github.com/go-openapi/validate v0.26.1 // indirect
	github.com/go-viper/mapstructure/v2 v2.5.0 // indirect
	github.com/gogo/protobuf v1.3.2 // indirect
	github.com/golang/groupcache v0.0.0-20241129210726-2c02b8208cf8 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.29.0 // indirect
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/in-toto/in-toto-golang v0.11.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/klauspost/compress v1.19.2 // indirect
	github.com/klauspost/cpuid/v2 v2.4.0 // indirect
	github.com/klauspost/crc32 v1.3.0 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/mdlayher/netlink v1.7.3-0.20250113171957-fbb4dce95f42 // indirect
	github.com/mdlayher/socket v0.5.1 // indirect
	github.com/minio/crc64nvme v1.1.1 // indirect
	github.com/minio/md5-simd v1.1.2 // indirect
	github.com/moby/locker v1.0.1 // indirect
	github.com/moby/sys/mountinfo v0.7.2 // indirect
	github.com/moby/sys/sequential v0.6.0 // indirect
	github.com/moby/sys/signal v0.7.1 // indirect
	github.com/moby/sys/user v0.4.0 // indirect
	github.com/moby/sys/userns v0.1.0 // indirect
	github.com/ncruces/go-strftime v1.1.0 // indirect
	github.com/oklog/ulid/v2 v2.1.1 // indirect
	github.com/philhofer/fwd v1.2.0 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/rs/xid v1.6.0 // indirect
	github.com/secure-systems-lab/go-securesystemslib v0.11.0 // indirect
	github.com/shibumi/go-pathspec v1.3.0 // indirect
	github.com/sigstore/rekor v1.5.3 // indirect
	github.com/sigstore/rekor-tiles/v2 v2.3.0 // indirect
	github.com/spf13/pflag v1.0.10 // indirect
	github.com/thales-e-security/pool v0.0.2 // indirect
	github.com/tinylib/msgp v1.6.4 // indirect
	github.com/valyala/fastrand v1.1.0 // indirect
	github.com/valyala/histogram v1.2.0 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	github.com/youmark/pkcs8 v0.0.0-20240726163527-a2c0da244d78 // indirect
	github.com/zeebo/xxh3 v1.1.0 // indirect
	go.opencensus.io v0.24.0 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp v0.68.0 // indirect
	go.opentelemetry.io/otel v1.45.0 // indirect
	go.opentelemetry.io/otel/metric v1.45.0 // indirect
	go.opentelemetry.io/otel/trace v1.45.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/exp v0.0.0-20251023183803-a4bb9ffd2546 // indirect
	golang.org/x/term v0.47.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	gopkg.in/ini.v1 v1.67.3 // indirect
	gotest.tools/v3 v3.5.2 // indirect
	modernc.org/libc v1.79.0 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.12.1 // indirect
)
