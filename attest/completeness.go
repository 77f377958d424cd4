package attest

import "slices"

// Why a list of inputs is complete.
const (
	Hermetic = "hermetic" // nothing could enter after sources and image
	Border   = "border"   // entry was by the recorded border alone
	Declared = "declared" // it could not be seen
)

// Completeness says, per class of input, why no other input can exist.
type Completeness struct {
	// Sources are the work tree's files when get_sources had ended.
	Sources string `json:"sources"`
	// Images are what the containers' root file systems were made from.
	Images string `json:"images"`
	// Packages are what package managers of tenant stages took in.
	Packages string `json:"packages"`
	// Files are all other bytes that tenant stages took in.
	Files string `json:"files"`
	// Artifacts are outputs of earlier jobs.
	Artifacts string `json:"artifacts"`
	// Caches are what earlier jobs left for this one.
	Caches string `json:"caches"`
}

// completeness derives the words from how the sandbox was built and from what
// the record shows.
//
// A build container without a network takes in nothing: images, packages and
// files are hermetic. With the border as its only way out they are border. The
// sources are no worse than that if the work tree was found equal to the
// commit; if not, what it holds is only declared. Artifacts and caches enter
// through the helper container, which always has the border, or are the host's to
// give: where the record shows that something did, they are border whatever the
// profile. A cache that no attestation vouches for can hold whatever anybody has
// put there: with it caches are only declared.
func completeness(s *story) Completeness {
	base := Border
	if s.opened.Network.Build == networkNone {
		base = Hermetic
	}
	c := Completeness{
		Sources: base, Images: base, Packages: base, Files: base,
		Artifacts: base, Caches: base,
	}
	if s.source == nil || s.source.Outcome != sourceMatch {
		c.Sources = Declared
	}
	for _, f := range s.fetches {
		switch f.Stage {
		case "download_artifacts":
			c.Artifacts = Border
		case "restore_cache":
			c.Caches = Border
		}
	}
	given := restored(s.caches)
	if len(given) > 0 {
		c.Caches = Border
	}
	if slices.ContainsFunc(given, func(k cache) bool { return k.Attestation == "" }) {
		c.Caches = Declared
	}
	return c
}
