// Command standalone runs the stand-in GitLab by itself: it hands out the jobs
// given as files, prints their traces and results, and ends after the last.
//
//	standalone -listen 127.0.0.1:8080 -repositories DIR [-tls-cert F -tls-key F] JOB.json...
//
// A job file holds a coordinator.Job in JSON; only Project and Script are needed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"hallmark.build/integration/coordinator"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "standalone:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("standalone", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:8080", "address to listen on")
	url := flags.String("url", "", "where clients find it; http://LISTEN by default")
	repositories := flags.String("repositories", "", "directory of bare Git repositories")
	cert := flags.String("tls-cert", "", "certificate file, for https")
	key := flags.String("tls-key", "", "key file, for https")
	if err := flags.Parse(args); err != nil {
		return err
	}
	server, err := coordinator.New(coordinator.Options{
		Repositories: *repositories, LongPoll: 10 * time.Second,
		OnTrace: func(_ int64, piece []byte) { _, _ = out.Write(piece) },
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if *url == "" {
		*url = map[bool]string{false: "http://", true: "https://"}[*cert != ""] + l.Addr().String()
	}
	if err := server.SetURL(*url); err != nil {
		return err
	}
	web := &http.Server{Handler: server, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() {
		if *cert != "" {
			served <- web.ServeTLS(l, *cert, *key)
			return
		}
		served <- web.Serve(l)
	}()
	defer func() {
		_ = web.Close()
		<-served
	}()
	fmt.Fprintln(out, "listening at", *url)
	return runJobs(ctx, server, flags.Args(), out)
}

// runJobs adds the jobs of the files and waits for each.
func runJobs(ctx context.Context, server *coordinator.Server, files []string, out io.Writer) error {
	var attempts []*coordinator.Attempt
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		var job coordinator.Job
		if err := json.Unmarshal(data, &job); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		a, err := server.AddJob(job)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		attempts = append(attempts, a)
	}
	var failed error
	for _, a := range attempts {
		r, err := a.Wait(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\njob %d: %s %s\n", r.ID, r.State, r.FailureReason)
		if r.State != coordinator.Success {
			failed = errors.New("a job failed")
		}
	}
	return failed
}
