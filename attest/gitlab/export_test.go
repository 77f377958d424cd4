package gitlab

import "time"

// Agrees is Check after GitLab has answered.
func Agrees(body []byte, want Facts) (Confirmed, error) {
	have, err := parse(body)
	if err != nil {
		return Confirmed{}, err
	}
	if d := compare(want, have, "running"); d != nil {
		return Confirmed{}, d
	}
	return confirmed(have, "")
}

// ReadClaims is IDTokens.Verify after the signature.
func ReadClaims(payload []byte, audience string, now time.Time, want Facts) (Identity, error) {
	t := &IDTokens{issuer: "http://127.0.0.1:1", audience: audience, now: func() time.Time { return now }}
	return t.read(payload, want)
}

// ParseKeys tells of each key that is taken whether it is public.
func ParseKeys(text []byte) []bool {
	set, _ := parseKeys(text)
	var public []bool
	for _, k := range set.Keys {
		public = append(public, k.IsPublic())
	}
	return public
}
