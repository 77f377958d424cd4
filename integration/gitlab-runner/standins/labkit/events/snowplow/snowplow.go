// Package snowplow is a stand-in: it sends nothing, anywhere.
package snowplow

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/metrics"
	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/oidc"
)

type SendResult struct {
	EventCount, StatusCode int
	Err                    error
}

type SendCallback func(successes, failures []SendResult)

type EmitterOption struct{}

func WithCallback(SendCallback) EmitterOption                              { return EmitterOption{} }
func WithTokenSource(*oidc.Source) EmitterOption                           { return EmitterOption{} }
func WithMetricsCollectorOptions(...metrics.CollectorOption) EmitterOption { return EmitterOption{} }

type Emitter struct{}

// NewEmitter refuses: a config.toml that asks for usage events is an error here.
func NewEmitter(string, ...EmitterOption) (*Emitter, error) {
	return nil, errors.New("labkit stand-in: snowplow events are not available in this build")
}
func (*Emitter) Collector() prometheus.Collector { return nil }

type Tracker struct{}

func NewTracker(string, *Emitter) (*Tracker, error) { return &Tracker{}, nil }
func (*Tracker) Stop()                              {}
func (*Tracker) TrackBillingEventWithOptionalInput(BillingEventRequiredInput, BillingEventOptionalInput) error {
	return nil
}

type BillingEventRequiredInput struct {
	Category, EventType, Realm, UnitOfMeasure string
	Quantity                                  float64
}

type BillingEventOptionalInput struct {
	Subject, DeploymentType, InstanceID, UniqueInstanceID   string
	ProjectID, NamespaceID, RootNamespaceID, OrganizationID int64
	Metadata                                                map[string]any
}
