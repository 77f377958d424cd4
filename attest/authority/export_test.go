package authority

// Takes reports whether a record that holds lines would take one more.
func Takes(held [][]byte, line []byte) bool {
	l := &live{}
	for _, h := range held {
		if _, err := l.add(h); err != nil {
			panic(err)
		}
	}
	if same, known := l.has(line); known {
		return same
	}
	_, err := l.copy().add(line)
	return err == nil
}

// Parse is parsePath, spelt out.
func Parse(path, builders string) (kind int, value string) {
	p := parsePath(path, builders)
	return int(p.kind), p.value
}

// SetMaxRecord spares tests writing MaxRecord bytes.
func (a *Authority) SetMaxRecord(n int64) { a.maxRecord = n }

// MaxConnections is maxConnections.
const MaxConnections = maxConnections
