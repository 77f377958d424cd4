package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// tellUse logs how much goes on in this daemon whenever it gets SIGUSR1, until ctx
// ends: what a job left running in it cannot be seen from outside.
func tellUse(ctx context.Context, log *slog.Logger) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		defer signal.Stop(asked)
		for {
			select {
			case <-ctx.Done():
				return
			case <-asked:
				log.Info("in use", "goroutines", runtime.NumGoroutine())
			}
		}
	}()
}
