// Package egress is the border of one job: it listens, terminates TLS, decides, fetches, hashes and records.
package egress
