package egress

import "bytes"

// A kind is what the first bytes of a connection are.
type kind int

const (
	undecided kind = iota // more bytes are needed
	isTLS                 // a TLS record with a ClientHello
	isHTTP                // an HTTP/1 request line
	isHTTP2               // HTTP/2 with prior knowledge
	isOther               // anything else
)

const (
	maxMethod   = 20
	http2Hello  = "PRI * HTTP/2.0\r\n"
	sniffEnough = maxMethod + 1
)

// sniff tells from a prefix of a connection which protocol it is. A decision
// never changes when more bytes come.
func sniff(b []byte) kind {
	if len(b) == 0 {
		return undecided
	}
	if b[0] == 0x16 {
		return sniffTLS(b)
	}
	if bytes.HasPrefix(b, []byte(http2Hello)) {
		return isHTTP2
	}
	if bytes.HasPrefix([]byte(http2Hello), b) {
		return undecided
	}
	for i, c := range b {
		switch {
		case c == ' ' && i > 0:
			return isHTTP
		case c < 'A' || c > 'Z' || i >= maxMethod:
			return isOther
		}
	}
	return undecided
}

// sniffTLS looks at type, version and length of the record, and at the type of
// the handshake message.
func sniffTLS(b []byte) kind {
	switch {
	case len(b) > 1 && b[1] != 3, len(b) > 2 && b[2] > 4:
		return isOther
	case len(b) > 4 && int(b[3])<<8|int(b[4]) > 1<<14:
		return isOther
	case len(b) < 6:
		return undecided
	case b[5] != 1:
		return isOther
	}
	return isTLS
}
