package host

import "bytes"

// serverCAFile is the file variable in which the runner hands GitLab's
// certificate chain to git and to its own uploader.
const serverCAFile = "CI_SERVER_TLS_CA_FILE"

var (
	beginPEM = []byte("-----BEGIN CERTIFICATE-----")
	endPEM   = []byte("-----END CERTIFICATE-----")
)

// standIn replaces GitLab's certificates by the job's own authority in the
// scripts that the runner generates. Inside a sandbox it is the border that
// answers for GitLab, and clients told to trust nothing but GitLab's chain
// would refuse it. The border itself checks GitLab's chain against the admin's
// roots.
//
// The script writes the file with
//
//	printf '%s' <quoted PEM> > ".../CI_SERVER_TLS_CA_FILE"
//
// inside one more layer of quoting, in either of the runner's two styles. What
// stands for a newline is taken from the PEM that is there. Text of another
// form is left as it is: then the client refuses, and nothing is believed.
func standIn(script, ca []byte) []byte {
	target := []byte("/" + serverCAFile)
	var out bytes.Buffer
	for {
		at := bytes.Index(script, target)
		if at < 0 {
			out.Write(script)
			return out.Bytes()
		}
		out.Write(replacePEM(script[:at], ca))
		out.Write(target)
		script = script[at+len(target):]
	}
}

// replacePEM replaces the certificates of the last printf before a redirect at
// the end of text.
func replacePEM(text, ca []byte) []byte {
	start := bytes.LastIndex(text, []byte("printf "))
	if start < 0 {
		return text
	}
	command := text[start:]
	begin, end := bytes.Index(command, beginPEM), bytes.LastIndex(command, endPEM)
	if begin < 0 || end < begin || !bytes.Contains(command[end:], []byte("> ")) || bytes.Contains(command[end:], []byte(";")) {
		return text
	}
	newline := leadingNewline(command[begin+len(beginPEM):])
	if newline == nil {
		return text
	}
	own := bytes.ReplaceAll(bytes.TrimSpace(ca), []byte("\n"), newline)
	return bytes.Join([][]byte{text[:start], command[:begin], own, command[end+len(endPEM):]}, nil)
}

// leadingNewline is what stands between the PEM's first line and its base64: a
// newline, or one escaped once or twice.
func leadingNewline(text []byte) []byte {
	for _, form := range []string{"\n", `\n`, `\\n`, `\\\\n`} {
		if bytes.HasPrefix(text, []byte(form)) {
			return []byte(form)
		}
	}
	return nil
}
