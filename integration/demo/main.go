// Command demo runs Hallmark's main job in front of your eyes: a real project
// is built by a real GitLab Runner in a hermetic sandbox, its artifacts are
// verified, then tampered with.
//
// It needs root and a Go toolchain. All of it happens in namespaces of its own
// (see package world); nothing of it is left on the machine. `make demo` builds
// what it needs before.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// limit is more than a slow machine needs.
const limit = 15 * time.Minute

func main() {
	os.Exit(world.Main(world.Options{
		Images:  []string{images.Helper, images.Go},
		Prepare: fetchProject,
	}, run))
}

func run(w *world.World) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := &show{world: w, page: newPage(os.Stdout)}
	if err := s.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\nerror:", err)
		if !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, w.Logs())
		}
		return 1
	}
	return 0
}
