// Package workspace is the file system of one attempt: it verifies the source tree, seals what the job wrote, and matches uploads with it.
package workspace
