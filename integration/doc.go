// Package integration proves the whole with the real GitLab Runner, real
// containerd and real clients.
//
// Its tests run in a world of their own: see package world. All of them share
// its programs; a test that stops one starts it again. Tests are named after
// what has to hold.
package integration
