// Package interop tests that other verifiers accept what the authority signs, and tells what they let through.
package interop
