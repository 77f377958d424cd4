package containerd

import "hallmark.build/sandbox/containerd/initproto"

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
