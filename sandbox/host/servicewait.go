package host

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/egress"
)

// lookPause is between two looks at what listens.
const lookPause = 20 * time.Millisecond

// awaitServices waits, before the first script of the job's, until each service
// listens on one of its ports. One that does not is said to, no more: the
// script may know better.
func (h *Host) awaitServices(ctx context.Context, j *job, out *joblog.Log) error {
	if !j.serving || j.awaited {
		return nil
	}
	j.awaited = true
	for _, line := range collisions(j.services) {
		out.Warn(line)
	}
	if h.cfg.Services.Wait <= 0 {
		return nil
	}
	start := time.Now()
	out.Printf("waiting for %d services to listen (timeout %s)", len(j.services), h.cfg.Services.Wait)
	late, err := h.look(ctx, j, start.Add(h.cfg.Services.Wait))
	if err != nil {
		return err
	}
	for _, s := range j.services {
		if s.over() && s.unfit() != nil {
			return fmt.Errorf("service %s: %w", s.name(), s.unfit())
		}
	}
	for _, s := range late {
		warnOf(out, s, h.cfg.Services.Wait)
	}
	out.Printf("services ready after %.1f s, %d of %d listen", time.Since(start).Seconds(), len(j.services)-len(late), len(j.services))
	return nil
}

// unfit is why the service could not be started at all, if that is the job's or
// the image's fault.
func (s *service) unfit() error {
	if isUser(s.err) {
		return s.err
	}
	return nil
}

// look looks at what listens until every service does, has ended or is late.
func (h *Host) look(ctx context.Context, j *job, deadline time.Time) (late []*service, err error) {
	for {
		ports, err := j.border.Listening(sandbox.Build)
		if err != nil {
			return nil, err
		}
		late = late[:0]
		pending := false
		for _, s := range j.services {
			over := s.over()
			if !over && slices.ContainsFunc(s.ports, func(p int) bool { return ports[p] }) {
				continue
			}
			late = append(late, s)
			pending = pending || !over && len(s.ports) > 0
		}
		if !pending || time.Now().After(deadline) {
			return late, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lookPause):
		}
	}
}

// warnOf says, as GitLab Runner does, that a service is probably not there.
func warnOf(out *joblog.Log, s *service, timeout time.Duration) {
	out.Break()
	if len(s.ports) == 0 && !s.over() {
		out.Warn(fmt.Sprintf("Service %s: its image exposes no port, so it is not known whether it is ready.", s.name()))
		out.Hint("set the service's variable HEALTHCHECK_TCP_PORT to the port that it listens on")
		return
	}
	out.Warn(fmt.Sprintf("Service %s probably didn't start properly.", s.name()))
	out.Break()
	out.Printf("Health check error:")
	if s.over() {
		out.Printf("service %q %s", s.name(), s.end())
	} else {
		out.Printf("service %q timeout: nothing listens on port %s after %s", s.name(), portList(s.ports), timeout)
	}
	out.Break()
	if !s.over() { // its end was told with the last that it said
		out.Printf("Service container logs:")
		for _, line := range s.said.last() {
			out.Quote(s.said.source, line)
		}
		out.Break()
	}
	out.Printf("*********")
}

// end says how a service ended.
func (s *service) end() string {
	switch {
	case s.err != nil:
		return "could not go on: " + s.err.Error()
	case s.exit.OOM:
		return fmt.Sprintf("ended after %.1f s: its memory limit was hit", s.exit.Duration.Seconds())
	}
	return fmt.Sprintf("ended after %.1f s with exit status %d", s.exit.Duration.Seconds(), s.exit.Code)
}

func portList(ports []int) string {
	words := make([]string, 0, len(ports))
	for _, p := range ports {
		words = append(words, fmt.Sprint(p))
	}
	return strings.Join(words, ", ")
}

// collisions says which services want a port that they cannot have: all share
// one network with the build, so that a port is one program's.
func collisions(services []*service) []string {
	var lines []string
	first := map[int]*service{}
	for _, s := range services {
		for _, port := range s.ports {
			if what := egress.Taken(port); what != "" {
				lines = append(lines, fmt.Sprintf("Service %s cannot listen on port %d of 127.0.0.1: there the border %s. Have it listen on another port, by its command or variables.", s.name(), port, what))
			}
			if other := first[port]; other != nil {
				lines = append(lines, fmt.Sprintf("Services %s and %s both want port %d, and a job's services and scripts share one network: only one of them can have it. Give the other one a port of its own, by its command or variables.", other.name(), s.name(), port))
				continue
			}
			first[port] = s
		}
	}
	return lines
}
