package containerd

import (
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strings"

	"hallmark.build/sandbox/containerd/initproto"
)

// TrustEnv lists the variables that make programs trust the job's authority in
// containers whose Spec had a CA. Programs that read the distribution's bundle
// need none of them; these are for the others. A few take a single file in
// place of their own roots, so those get the image's roots too.
func TrustEnv() []string {
	const (
		both = "=" + initproto.RootsFile
		ours = "=" + initproto.CAFile
	)
	return []string{
		"SSL_CERT_FILE" + both,           // OpenSSL, Go, Rust, Ruby, uv, skopeo
		"CURL_CA_BUNDLE" + both,          // curl
		"GIT_SSL_CAINFO" + both,          // git with any TLS library
		"REQUESTS_CA_BUNDLE" + both,      // Python requests
		"PIP_CERT" + both,                // pip before 24.2
		"CARGO_HTTP_CAINFO" + both,       // cargo
		"NODE_EXTRA_CA_CERTS" + ours,     // node, npm, pnpm, bun, yarn 1
		"npm_config_cafile" + both,       // npm, yarn 1
		"YARN_HTTPS_CA_FILE_PATH" + both, // yarn 2 and later
		"DENO_CERT" + ours,               // deno
		"AWS_CA_BUNDLE" + both,           // AWS tools
		"BUNDLE_SSL_CA_CERT" + both,      // bundler's index
		"UV_SYSTEM_CERTS=true",           // uv: not its built-in roots
		"JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=" + initproto.JavaFile + " -Djavax.net.ssl.trustStoreType=PKCS12",
	}
}

// opensslDir is where OpenSSL looks certificates up by their subjects' hashes
// if nothing tells it of a bundle, as in a process that has lost TrustEnv.
const opensslDir = "/etc/ssl/certs/"

// hashedCA is the authority under the name that OpenSSL looks for.
func hashedCA(ca []byte) []initproto.File {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	hash, err := subjectHash(cert.RawSubject)
	if err != nil {
		return nil
	}
	return []initproto.File{{Path: fmt.Sprintf("%s%08x.0", opensslDir, hash), Data: ca}}
}

// subjectHash is OpenSSL's X509_NAME_hash: the first four bytes, lowest first,
// of the SHA-1 of the name's relative parts, each value a canonical UTF8String.
func subjectHash(subject []byte) (uint32, error) {
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(subject, &name); err != nil {
		return 0, err
	}
	sum := sha1.New()
	for _, rdn := range name {
		var set []attribute
		for _, a := range rdn {
			set = append(set, attribute{a.Type, canonical(fmt.Sprint(a.Value))})
		}
		part, err := asn1.MarshalWithParams(set, "set")
		if err != nil {
			return 0, err
		}
		sum.Write(part)
	}
	return binary.LittleEndian.Uint32(sum.Sum(nil)), nil
}

// canonical folds ASCII alone: letters to lower case, spaces to one.
func canonical(s string) string {
	lower := strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
	return strings.Join(strings.FieldsFunc(lower, func(r rune) bool { return r == ' ' || '\t' <= r && r <= '\r' }), " ")
}
