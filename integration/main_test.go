package integration

import (
	"fmt"
	"os"
	"testing"

	"hallmark.build/integration/world"
)

// theWorld is what every test stands in. It is set once, before the first.
var theWorld *world.World

func TestMain(m *testing.M) {
	os.Exit(world.Main(world.Options{Prepare: prepareBenchmarks}, func(w *world.World) int {
		theWorld = w
		if err := setUp(w); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s\n", err, w.Logs())
			return 1
		}
		code := m.Run()
		if leaks := w.Leaks(); len(leaks) > 0 {
			fmt.Fprintf(os.Stderr, "left behind by all tests:\n%s\n", lines(leaks))
			code = max(code, 1)
		}
		return code
	}))
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
