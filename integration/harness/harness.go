// Package harness is what tests of whole jobs share: a world, jobs in it, and what became of them.
package harness

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"hallmark.build/integration/world"
)

// World is what every test of a package stands in. [Main] sets it before the first.
var World *world.World

// project is the repository of most jobs.
var project = map[string]string{
	"README":      "hello\n",
	"src/main.sh": "#!/bin/sh\necho built from $(cat README)\n",
}

// Main runs a package's tests in a world whose programs run, and returns what
// the process has to exit with. Ready is called before the first test. Nothing
// may be left of any job behind the last.
func Main(m *testing.M, opts world.Options, ready func(*world.World) error) int {
	return world.Main(opts, func(w *world.World) int {
		World = w
		if err := errors.Join(setUp(w), ready(w)); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s\n", err, w.Logs())
			return 1
		}
		code := m.Run()
		if leaks := w.Leaks(); len(leaks) > 0 {
			fmt.Fprintf(os.Stderr, "left behind by all tests:\n%s\n", Lines(leaks))
			code = max(code, 1)
		}
		return code
	})
}

func setUp(w *world.World) error {
	if _, err := w.Publish("group/project", "main", project); err != nil {
		return err
	}
	if err := w.Start(); err != nil {
		return err
	}
	w.Remember()
	return nil
}
