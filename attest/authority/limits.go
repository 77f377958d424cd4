package authority

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"hallmark.build/attest/store"
)

// Limits bound what one host can take from the others. Zero values are replaced
// by the defaults.
type Limits struct {
	Calls          int // in flight; default 32
	OpenAttempts   int // default 1024; each replica counts its own
	OpensPerMinute int // default 600
}

func (l Limits) orDefault() Limits {
	return Limits{
		Calls:          orDefault(l.Calls, 32),
		OpenAttempts:   orDefault(l.OpenAttempts, 1024),
		OpensPerMinute: orDefault(l.OpensPerMinute, 600),
	}
}

func orDefault(n, other int) int {
	if n <= 0 {
		return other
	}
	return n
}

// What is shared by all hosts, and what one host may have of it.
const (
	incomingPerHost = 2 * MaxMessage // bytes of requests that are arriving or being answered
	runningCalls    = 64             // past their arrival
	runningPerHost  = 8
	openingCalls    = 32 // waiting for GitLab
	openingPerHost  = 4
	signingCalls    = 16 // with the key
	signingPerHost  = 4
	lockedJobs      = 64 // fewer than a store has connections for
	lockedPerHost   = 16
	recordBytes     = 2 * MaxRecord // of records read whole, to be concluded
	liveBytes       = 64 << 20      // of hashes of one host's records in memory
	arrivingBytes   = 256 << 20     // of requests that have come and wait for their turn
)

// The limits by the names that hosts and metrics are told.
const (
	limitCalls        = "CALLS_IN_FLIGHT"
	limitOpens        = "OPENS_PER_MINUTE"
	limitOpenAttempts = "OPEN_ATTEMPTS"
	limitJoins        = "JOINS_PER_MINUTE"
	limitRecord       = "RECORD_SIZE"
	limitFields       = "FIELDS_OF_MESSAGE"
	limitMessage      = "SIZE_OF_MESSAGE"
	limitArriving     = "BYTES_ARRIVING"
	limitAttempts     = "ATTEMPTS_OF_JOB"
)

// Domain is that of the reasons in the details of refusals.
const Domain = "hallmark.build"

// limits are an authority's.
type limits struct {
	Limits
	incoming *turns // arriving requests, in bytes that they may have
	arrived  *arrivals
	running  *turns
	opening  *turns
	signing  *turns
	locked   *turns // jobs
	records  *turns // in bytes
	opens    *rates // by host
	joins    *rates // by address
	audits   *rates // by event and peer: a flood of refusals is counted, not recorded

	mu       sync.Mutex
	inFlight map[string]int
	open     map[string]string // hosts by attempt
	openOf   map[string]int    // attempts of a host
}

func newLimits(l Limits, now func() time.Time) *limits {
	l = l.orDefault()
	return &limits{
		Limits:   l,
		incoming: newTurns(1<<62, incomingPerHost),
		arrived:  newArrivals(arrivingBytes),
		running:  newTurns(runningCalls, runningPerHost),
		opening:  newTurns(openingCalls, openingPerHost),
		signing:  newTurns(signingCalls, signingPerHost),
		locked:   newTurns(lockedJobs, lockedPerHost),
		records:  newTurns(recordBytes, MaxRecord),
		opens:    newRates(l.OpensPerMinute, max(1, l.OpensPerMinute/10), now),
		joins:    newRates(600, 100, now),
		audits:   newRates(60, 30, now),
		inFlight: map[string]int{},
		open:     map[string]string{},
		openOf:   map[string]int{},
	}
}

// exhausted is a refusal for a limit. With a wait it tells the host to ask again.
func exhausted(limit string, wait time.Duration, format string, args ...any) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: limit, Domain: Domain}}
	if wait > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	}
	s := status.New(codes.ResourceExhausted, fmt.Sprintf(format, args...))
	if detailed, err := s.WithDetails(details...); err == nil {
		s = detailed
	}
	return s.Err()
}

// limited records that a peer reached a limit, and tells it.
func (a *Authority) limited(ctx context.Context, peer, limit string, wait time.Duration, format string, args ...any) error {
	err := exhausted(limit, wait, format, args...)
	a.auditSparingly(ctx, peer, EventLimit, "limit", limit, "why", status.Convert(err).Message())
	return err
}

// startCall counts a call of a peer.
func (l *limits) startCall(peer string) (end func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight[peer] >= l.Calls {
		return nil, false
	}
	l.inFlight[peer]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.inFlight[peer]--; l.inFlight[peer] == 0 {
			delete(l.inFlight, peer)
		}
	}), true
}

// admitOpen bounds how often and how many at a time a host opens attempts:
// each costs a question to GitLab.
func (a *Authority) admitOpen(ctx context.Context) (*share, error) {
	host := callerOf(ctx).Host
	if n := a.limits.opened(host); n >= a.limits.OpenAttempts {
		return nil, a.limited(ctx, host, limitOpenAttempts, 30*time.Second, "this host has %d open attempts, as many as it may", n)
	}
	if wait, ok := a.limits.opens.take(host); !ok {
		return nil, a.limited(ctx, host, limitOpens, wait, "this host may open %d attempts a minute", a.limits.OpensPerMinute)
	}
	stepAside(ctx)
	return a.limits.opening.enter(ctx, host, 1)
}

func (l *limits) opened(host string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.openOf[host]
}

// addOpen counts an open attempt of a host.
func (l *limits) addOpen(host, attempt string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[attempt] = host
	l.openOf[host]++
}

// removeOpen counts it no longer.
func (l *limits) removeOpen(attempt string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	host, ok := l.open[attempt]
	if !ok {
		return
	}
	delete(l.open, attempt)
	if l.openOf[host]--; l.openOf[host] == 0 {
		delete(l.openOf, host)
	}
}

// setOpen counts anew. Other replicas open and close attempts too.
func (l *limits) setOpen(all []store.Attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.open)
	clear(l.openOf)
	for _, at := range all {
		l.open[at.ID] = at.Host
		l.openOf[at.Host]++
	}
}

// allOpen is how many attempts are open.
func (l *limits) allOpen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}
