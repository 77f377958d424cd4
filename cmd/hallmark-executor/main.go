// Command hallmark-executor is the driver that GitLab Runner's custom executor
// starts for each call of a job.
//
// It holds no privilege: it asks hallmark-sandboxd over a unix socket. Exit
// codes are GitLab Runner's: 0 ok, 1 the job is to blame, 2 everything else.
package main

import (
	"os"

	"hallmark.build/executor"
)

func main() {
	os.Exit(executor.Main(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
}
