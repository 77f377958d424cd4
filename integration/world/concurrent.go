package world

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
)

var concurrentLine = regexp.MustCompile(`(?m)^concurrent = (\d+)$`)

// Concurrent lets the runner, which is started again, run n jobs at once. It
// returns how many it was before.
func (w *World) Concurrent(n int) (before int, err error) {
	config, err := os.ReadFile(RunnerFile)
	if err != nil {
		return 0, err
	}
	m := concurrentLine.FindSubmatch(config)
	if m == nil {
		return 0, fmt.Errorf("%s: does not say how many jobs run at once", RunnerFile)
	}
	if before, err = strconv.Atoi(string(m[1])); err != nil {
		return 0, err
	}
	if err := w.Runner.Stop(); err != nil {
		return 0, err
	}
	config = concurrentLine.ReplaceAll(config, fmt.Appendf(nil, "concurrent = %d", n))
	if err := os.WriteFile(RunnerFile, config, 0o600); err != nil {
		return 0, err
	}
	return before, w.Runner.Start()
}
