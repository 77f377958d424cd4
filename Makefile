# Hallmark. `make` builds, `make test` proves, `make demo` shows.
#
# Every target does the set-up that it needs, and a second run does only what
# has changed: the Go build cache, images by content key, tools by version.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules

VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS   := -s -w -X main.version=$(VERSION) -X hallmark.build/executor.Version=$(VERSION)
CACHE     := .cache/bin
SETUP     := integration/setup
# Flags for `go test`, e.g. make test TESTFLAGS='-v -run Cancel' TESTS=./integration
TESTFLAGS ?=
TESTS     ?= ./...
FUZZTIME  ?= 5s
# Packages of tests that want the machine for themselves, one after the other:
# each runs a whole fleet of programs.
ALONE     := hallmark.build/integration(/forgery|/interop|/parity|/sigstore)?

export GOFLAGS := -buildvcs=false

.PHONY: all build deps runtime runner tools peers install test demo lint race fuzz bench clean

all: build

# Our programs, static but for one: hallmark-init runs in images that have no
# libraries, and the others have no reason to need some. grpcnotrace leaves out
# pages of HTML that gRPC would bring along and nobody serves. hallmark-pkcs11
# exists to load a vendor's library into a process that is not the authority;
# hallmark-kms is a module of its own, as it has the libraries of four services.
build:
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o bin/ $$(go list ./cmd/... | grep -v '/hallmark-pkcs11$$')
	CGO_ENABLED=1 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/hallmark-pkcs11
	cd cmd/hallmark-kms && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../bin/ .

# What the system must have, installed where it is missing.
deps:
	@$(SETUP)/deps.sh

# containerd and runc, the pair that sandboxd starts; runc with seccomp.
runtime: deps
	@$(SETUP)/tools.sh $(CACHE) containerd runc

# The real GitLab Runner, unless GITLAB_RUNNER names an installed one.
runner:
	@test -n "$${GITLAB_RUNNER:-}" || $(SETUP)/runner.sh $(CACHE)

# What a demo needs besides.
tools: runtime runner
	@$(SETUP)/tools.sh $(CACHE) cosign

# What the tests call on top: other verifiers, a whole Sigstore, object storages,
# a key service. This is minutes of building, once, and wants Node.js with npm.
peers: tools
	@$(SETUP)/tools.sh $(CACHE) cosign2 versitygw azurite local-kms sigstore-js fulcio timestamp-server rekor-tiles

# Onto this machine, or below DESTDIR.
install: build runtime
	@$(SETUP)/install.sh bin $(CACHE)

test: build peers
	@rest=$$(go list $(TESTS) | grep -vxE '$(ALONE)' || true); \
	alone=$$(go list $(TESTS) | grep -xE '$(ALONE)' || true); \
	status=0; \
	[ -z "$$rest" ] || go test -timeout 55m $(TESTFLAGS) $$rest || status=1; \
	[ -z "$$alone" ] || go test -p 1 -timeout 55m $(TESTFLAGS) $$alone || status=1; \
	(cd integration/gitlab-runner/standins/phrasestream && go test $(TESTFLAGS) ./...) || status=1; \
	exit $$status

demo: build tools
	@go run ./integration/demo

lint:
	@$(SETUP)/lint.sh $(CACHE)

# The integration tests run other programs, which a race detector in the test's
# own process does not see into.
race: build runtime runner
	@$(SETUP)/tools.sh $(CACHE) versitygw azurite local-kms cosign rekor-tiles
	go test -race -timeout 35m $(TESTFLAGS) $$(go list ./... | grep -vxE '$(ALONE)')

# Every fuzz target that there is, for a little while each.
fuzz:
	@$(SETUP)/fuzz.sh $(FUZZTIME)

bench: build peers
	go test -run '^$$' -bench . -benchmem -timeout 60m $(TESTFLAGS) $(TESTS)

clean:
	rm -rf bin .cache
