// Package parity runs the same jobs under the runner's own docker executor and under Hallmark, and compares them.
package parity
