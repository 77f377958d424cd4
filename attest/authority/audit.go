package authority

import (
	"context"
	"log/slog"
	"strings"

	"hallmark.build/attest/store"
)

// An Event names what an audit record is about. The names are stable: alerts
// and searches are built on them.
type Event string

// What was done.
const (
	EventOpened     Event = "attempt_opened"
	EventClosed     Event = "attempt_closed"
	EventWaiting    Event = "attempt_waiting"
	EventGivenUp    Event = "attempt_given_up"
	EventInvited    Event = "host_invited"
	EventJoined     Event = "host_joined"
	EventRenewed    Event = "host_renewed"
	EventRevocation Event = "host_revoked"
)

// What was refused.
const (
	// About who calls.
	EventNoCertificate      Event = "no_certificate"
	EventWrongCertificate   Event = "wrong_certificate"
	EventExpiredCertificate Event = "expired_certificate"
	EventUnknownHost        Event = "unknown_host"
	EventRevokedHost        Event = "revoked_host"
	EventUnknownInvitation  Event = "unknown_invitation"
	EventUsedInvitation     Event = "used_invitation"
	EventExpiredInvitation  Event = "expired_invitation"
	EventNotAdmin           Event = "not_admin"
	// About what a caller may do.
	EventNotPermitted   Event = "not_permitted"
	EventForeignAttempt Event = "foreign_attempt"
	EventLimit          Event = "limit_reached"
	// About the evidence.
	EventGitLabDisagrees Event = "gitlab_disagrees"
	EventIDTokenRefused  Event = "id_token_refused"
	EventSecondOpening   Event = "second_opening"
	EventReplayed        Event = "record_replayed"
	EventFactsDiffer     Event = "record_facts_differ"
	EventReordered       Event = "record_reordered"
	EventRewritten       Event = "record_rewritten"
	EventGap             Event = "record_gap"
	EventFork            Event = "record_fork"
	EventUnknownKind     Event = "record_unknown_kind"
	EventMalformed       Event = "record_malformed"
	EventTooLarge        Event = "record_too_large"
	EventClockSkew       Event = "record_clock_skew"
	EventHeadDiffers     Event = "record_head_differs"
	EventRecordRefused   Event = "record_refused"
	EventOriginDiffers   Event = "record_origin_differs"
)

var (
	acts     = []Event{EventOpened, EventClosed, EventWaiting, EventGivenUp, EventInvited, EventJoined, EventRenewed, EventRevocation}
	refusals = []Event{
		EventNoCertificate, EventWrongCertificate, EventExpiredCertificate, EventUnknownHost, EventRevokedHost,
		EventUnknownInvitation, EventUsedInvitation, EventExpiredInvitation, EventNotAdmin,
		EventNotPermitted, EventForeignAttempt, EventLimit,
		EventGitLabDisagrees, EventIDTokenRefused, EventSecondOpening, EventReplayed, EventFactsDiffer, EventReordered, EventRewritten,
		EventGap, EventFork, EventUnknownKind, EventMalformed, EventTooLarge, EventClockSkew, EventHeadDiffers, EventRecordRefused,
		EventOriginDiffers,
	}
)

// audit records an event and counts it. Refusals are warnings.
func (a *Authority) audit(ctx context.Context, event Event, fields ...any) {
	level := slog.LevelInfo
	if a.metrics.count(event) {
		level = slog.LevelWarn
	}
	a.cfg.Log.Log(ctx, level, "audit event", append([]any{"audit", true, "event", string(event)}, fields...)...)
}

// auditSparingly is audit for what a peer can have refused as often as it likes:
// all of it is counted, but a flood is not recorded in full.
func (a *Authority) auditSparingly(ctx context.Context, peer string, event Event, fields ...any) {
	if _, ok := a.limits.audits.take(string(event) + " " + peer); !ok {
		a.metrics.count(event)
		return
	}
	a.audit(ctx, event, fields...)
}

// maxWhy bounds, in bytes, what is said of a refusal.
const maxWhy = 1 << 10

// brief bounds the words of a refusal, which may quote what a host sent: they are
// kept for good, and an answer that is a refusal waits here until it is read.
func brief(why string) string {
	if len(why) <= maxWhy {
		return why
	}
	return strings.ToValidUTF8(why[:maxWhy], "") + "…"
}

// attemptFields tell which attempt an event is about, if it is about one.
func attemptFields(at *store.Attempt) []any {
	if at == nil {
		return nil
	}
	return []any{"attempt", at.ID, "opened_by", hostName(at.Host), "job_id", at.Job.ID, "project_id", at.Job.ProjectID}
}

// hostName is a host by the name that it has in records and metrics.
func hostName(host string) string {
	if host == "" {
		return "local"
	}
	return host
}
