# `make help` lists the targets. Tools that only tests need are built into .bin, which comes first in PATH.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(CURDIR)/.bin:$(PATH):/usr/sbin:/sbin

VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BENCHSTAT = go run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
# Packages under test at once: many of them wait for other programs. Nothing is vetted twice, as `make vet` does it.
GOTEST = go test -vet=off -timeout 30m -p $$(($$(nproc) + 1))
# The directories of packages that test more without -short or without the race detector, and those of all others.
FULL = grep -rlE 'testing\.Short\(\)|vmtest\.Boot|need\.Race|AllocsPerRun' --include='*.go' . | xargs dirname | sort -u
REST = comm -13 <($(FULL)) <(go list -f '{{.Dir}}' ./... | sed "s,^$$PWD,.," | sort)
# The race detector watches neither zstd's nor gzip's own memory, since their tables made tests of deltas four times
# slower. It knows their locks and goroutines, and `make test-long` watches all of it.
RACE = -race -gcflags=github.com/klauspost/compress/...=-race=false
# It needs a C compiler.
RACE_IF_CC = $(shell command -v "$$(go env CC)" >/dev/null && echo '$(RACE)')
# What `make fuzz` gives each fuzz target.
FUZZTIME ?= 30s
# What `make bench-compare` runs, how often, and in which packages.
BENCH ?= .
COUNT ?= 6
PKGS ?= ./...

.PHONY: help build check fmt vet lint tidy vuln race libzstd cross test test-long fuzz bench bench-net bench-delta bench-update bench-compare figures demo cover tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

build: ## the static binary ./cairn
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o cairn ./cmd/cairn

check: fmt vet lint tidy vuln race libzstd cross ## before a commit: format, vet, lint, known vulnerabilities, race tests, cross-build

fmt:
	@bad=$$(gofmt -l .); [[ -z $$bad ]] || { echo "not gofmt'ed:" $$bad; exit 1; }

vet:
	go vet ./...

lint: .bin/golangci-lint
	golangci-lint run ./...

tidy:
	go mod tidy -diff

vuln: .bin/govulncheck ## known vulnerabilities, where vuln.go.dev can be reached
	.ci/vuln

race:
	$(GOTEST) $(RACE) -short $$(go list ./... | grep -vE '/(e2e|crashtest)$$') # which test nothing with -short

libzstd: ## the tests of the build that links libzstd, where there is a C compiler
	@if command -v "$$(go env CC)" >/dev/null; then \
	  set -x; go vet -tags libzstd ./store/... ./blob/delta && CGO_ENABLED=1 go test -vet=off -short -tags libzstd ./store ./store/chunkfile ./blob/ingest ./blob/delta; \
	else echo "no C compiler: the libzstd build is not tested"; fi

cross: # nothing runs, so nothing is optimized
	GOARCH=arm64 CGO_ENABLED=0 go build -gcflags=all='-N -l' ./...
	GOARCH=arm GOARM=7 CGO_ENABLED=0 go build -gcflags=all='-N -l' ./...

test: ## install the peers, then run every test against them (about ten minutes on two cores)
	.ci/install
	$(GOTEST) $(RACE_IF_CC) -short $$($(REST)) # as in `make check`, whose results are cached
	$(GOTEST) -count=1 -timeout 40m ./internal/test/e2e ./internal/test/crashtest $$($(FULL)) # the longest begin first

test-long: ## the same with large counts and real images (hours)
	.ci/install
	go test -race -short -count=1 -timeout 1h ./...
	CAIRN_LONG=1 go test -count=1 -timeout 6h -v ./...
	.ci/fuzz 10s

fuzz: ## every fuzz target for FUZZTIME (default 30s) each
	.ci/fuzz $(FUZZTIME)

bench: ## measure cairn against its peers
	.ci/bench

bench-net: ## measure cairn beside desync over slow, long and lossy links
	.ci/bench net

bench-delta: ## measure deltas beside zstd --patch-from and xdelta3
	.ci/bench delta

bench-update: ## measure an update over a slow link beside casync and desync
	.ci/bench update

bench-compare: ## Go benchmarks of REF=... against this tree (BENCH=regexp PKGS=./... COUNT=6)
	@[[ -n "$(REF)" ]] || { echo "usage: make bench-compare REF=commit [BENCH=regexp] [PKGS=./...] [COUNT=6]"; exit 2; }
	.ci/bench-compare '$(REF)' '$(BENCH)' '$(COUNT)' $(PKGS)
	$(BENCHSTAT) old=.cache/bench/old.txt new=.cache/bench/new.txt

figures: ## how the code reads, in numbers, beside projects of the same field
	go run ./internal/test/figures

demo: ## a tour of make, assemble and serve on small images
	.ci/demo

cover: ## test coverage, in numbers and as .cache/cover.html
	@mkdir -p .cache
	go test -short -coverpkg=./... -coverprofile=.cache/cover.out ./...
	go tool cover -html=.cache/cover.out -o .cache/cover.html
	@go tool cover -func=.cache/cover.out | tail -n 1

tools: .bin/desync .bin/versitygw .bin/golangci-lint .bin/govulncheck ## desync, versitygw, the linters and govulncheck, built into .bin
	@:

.bin/desync: .ci/peers/go.mod .ci/peers/go.sum
	cd .ci/peers && go build -buildvcs=false -o $(CURDIR)/$@ github.com/folbricht/desync/cmd/desync
	@touch $@

.bin/versitygw: .ci/s3server/go.mod .ci/s3server/go.sum
	cd .ci/s3server && go build -buildvcs=false -o $(CURDIR)/$@ github.com/versity/versitygw/cmd/versitygw
	@touch $@

.bin/golangci-lint: .ci/tools/go.mod .ci/tools/go.sum
	cd .ci/tools && go build -buildvcs=false -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
.bin/govulncheck: .ci/tools/go.mod .ci/tools/go.sum
	cd .ci/tools && go build -buildvcs=false -o $(CURDIR)/$@ golang.org/x/vuln/cmd/govulncheck
	@touch $@

clean: ## remove what was built, installed and cached here
	rm -rf cairn .bin .cache
