package attest

import "fmt"

// A Reason names the rule that a record breaks.
type Reason string

// Nothing to sign, but the record is in order.
const (
	NoOutputs       Reason = "no_outputs"       // nothing was uploaded
	UploadsRejected Reason = "uploads_rejected" // GitLab took none of the uploads
	SystemFailure   Reason = "system_failure"   // the host failed, so the job's end is not known
	NotClosed       Reason = "not_closed"       // more is to come
	TooLarge        Reason = "too_large"        // statements that no verifier would take
)

// The record contradicts itself, or what a sandbox can do.
const (
	Malformed            Reason = "malformed"              // data is not what its kind promises
	ChainBroken          Reason = "chain_broken"           // entries do not follow one another
	NotOpened            Reason = "not_opened"             // the first entry does not open a job
	ProfileUnknown       Reason = "profile_unknown"        // no such security mode
	BuilderContradiction Reason = "builder_contradiction"  // the builder id is another profile's
	NetworkContradiction Reason = "network_contradiction"  // the network is not the profile's
	FactsContradiction   Reason = "facts_contradiction"    // external parameters against GitLab's facts
	NumberTooLarge       Reason = "number_too_large"       // JSON readers would change it
	Violation            Reason = "violation"              // the host found a contradiction itself
	StageOpen            Reason = "stage_open"             // a stage did not end
	StagesOverlap        Reason = "stages_overlap"         // a stage started within another
	StageNeverStarted    Reason = "stage_never_started"    // a stage ended that did not start
	StageRole            Reason = "stage_role"             // a stage ran in the wrong container
	OutcomeUnknown       Reason = "outcome_unknown"        // a stage or job ended as no stage or job does
	ImageMissing         Reason = "image_missing"          // a container ran from an image that nobody resolved
	ImageChanged         Reason = "image_changed"          // two images for one container, or one too late
	ServiceUnasked       Reason = "service_unasked"        // a service that the job does not name
	SourceUnverified     Reason = "source_unverified"      // a tenant stage before the comparison
	SourceInFlux         Reason = "source_in_flux"         // the comparison while a stage could write
	SourceOther          Reason = "source_other"           // the comparison with another commit
	SourceAfterTenant    Reason = "source_after_tenant"    // sources fetched or compared after tenant code ran
	TenantAfterSeal      Reason = "tenant_after_seal"      // a tenant stage in a sealed workspace
	SealInFlux           Reason = "seal_in_flux"           // the seal while a stage could write
	SealedTwice          Reason = "sealed_twice"           // a seal that was not one
	NotSealed            Reason = "not_sealed"             // outputs read from a workspace that could change
	FetchOutsideStage    Reason = "fetch_outside_stage"    // an exchange that no stage can have made
	FetchWithoutNetwork  Reason = "fetch_without_network"  // an exchange from a namespace with no way out
	UploadOutsideStage   Reason = "upload_outside_stage"   // an artifact that no upload stage can have sent
	UploadInconsistent   Reason = "upload_inconsistent"    // an artifact whose members cannot be so
	CacheInconsistent    Reason = "cache_inconsistent"     // a cache that no job can have had, or left
	DownloadInconsistent Reason = "download_inconsistent"  // an attestation of what is no earlier job's artifact
	ResultContradiction  Reason = "result_contradiction"   // success claimed of a job whose script failed
	CredentialsInAddress Reason = "credentials_in_address" // a URL that must not be published
)

// A Refusal says why a record gives no statement.
type Refusal struct {
	Reason Reason
	Entry  int64 // the entry that does not fit; -1 where it is the whole record
	Detail string
}

func (r *Refusal) Error() string {
	if r.Entry < 0 {
		return fmt.Sprintf("attest: %s: %s", r.Reason, r.Detail)
	}
	return fmt.Sprintf("attest: entry %d: %s: %s", r.Entry, r.Reason, r.Detail)
}

// Security reports whether the evidence contradicts itself. Every reason that
// is not known to be harmless does.
func (r *Refusal) Security() bool {
	switch r.Reason {
	case NoOutputs, UploadsRejected, SystemFailure, NotClosed, TooLarge:
		return false
	}
	return true
}
