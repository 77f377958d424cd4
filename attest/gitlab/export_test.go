package gitlab

// Agrees is Check after GitLab has answered.
func Agrees(body []byte, want Facts) (Confirmed, error) {
	have, err := parse(body)
	if err != nil {
		return Confirmed{}, err
	}
	if d := compare(want, have); d != nil {
		return Confirmed{}, d
	}
	return confirmed(have.WebURL, "", want.ID)
}
