package egress_test

import (
	"context"
	"fmt"
	"os"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// One stage of a job, behind the border.
func ExampleBorder() {
	stage := func(p policy.Policy, log *record.Log, spool string, match egress.UploadCheck, run func(netns string, ca []byte) error) error {
		b, err := egress.Open(context.Background(), egress.Config{Policy: p, Record: log, SpoolDir: spool, CheckUpload: match})
		if err != nil {
			return err
		}
		defer b.Close()
		netns, err := b.Namespace(sandbox.Build) // for the container's spec
		if err != nil {
			return err
		}
		b.Begin(sandbox.Build, sandbox.BuildScript)
		if err := run(netns, b.CA()); err != nil {
			return err
		}
		return b.End(sandbox.Build) // a *sandbox.SecurityError ends the job
	}
	if err := stage(policy.Policy{}, nil, os.TempDir(), nil, nil); err != nil {
		fmt.Println(err)
	}
}
