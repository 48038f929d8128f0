# Paceline. `make help` lists what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help run test check lint sweep bench docs crd images tools cluster cluster-down format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Paceline needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "making the environment in $(VENV): PyTorch is large, this takes one to three minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

run: $(READY) ## train the digits example: 2 servers, 4 workers
	@$(BIN)/paceline run manifests/examples/digits.yaml
	@echo
	@echo "try next:"
	@echo "  $(BIN)/paceline run manifests/examples/digits.yaml --slow worker-2=30ms   # who makes whom wait"
	@echo "  $(BIN)/paceline run manifests/examples/digits-async.yaml                  # nobody waits"
	@echo "  $(BIN)/paceline run manifests/examples/language.yaml                      # 51 MB of parameters"
	@echo "  docs/tutorial.md                                                        # your own script"

test: $(READY) ## every test
	@$(BIN)/python -P tests/all.py

check: lint ## lint, and the fast tests
	@$(BIN)/pytest -m "not slow"

lint: $(READY) ## format, style, types, layers, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate_reference.py --check
	@$(BIN)/python docs/generate_metrics.py --check
	@$(BIN)/python docs/generate_compatibility.py --check
	@$(BIN)/python -m charts.dashboards --check
	@$(BIN)/python -m paceline_operator.definition.crd --check

sweep: $(READY) ## random tests in their long form, with their seeds: hours
	@PACELINE_OUTAGE_SECONDS=60 PACELINE_SWEEP=50000 PACELINE_CUT_RUNS=1000 PACELINE_RUNS_AT_ONCE=40 PACELINE_KILL_STEPS=26 $(BIN)/pytest -m sweep --timeout 7200 -rP

bench: $(READY) ## measure against baselines; writes benchmarks/RESULTS.md (needs iperf3 for one of them)
	@$(BIN)/python -m benchmarks

docs: $(READY) ## write reference.md, metrics.md, compatibility.md and the dashboards anew
	@$(BIN)/python docs/generate_reference.py
	@$(BIN)/python docs/generate_metrics.py
	@$(BIN)/python docs/generate_compatibility.py
	@$(BIN)/python -m charts.dashboards

crd: $(READY) ## write manifests/crd.yaml and the chart's copy anew from the specification
	@$(BIN)/python -m paceline_operator.definition.crd

images: ## build both images with buildah, podman or docker (see images/build)
	@images/build

tools: ## Prometheus, Chromium and an S3 server, which some tests use and are skipped without (needs root and Go)
	@(command -v promtool && command -v chromium) >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus chromium fonts-liberation; } >/dev/null
	@tests/cluster/cluster s3

cluster: $(READY) ## a real Kubernetes on this machine with Paceline in it and a first training (needs root and Go)
	@tests/cluster/start

cluster-down: ## end that cluster; nothing stays but its cache
	@tests/cluster/cluster down

format: $(READY) ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove what make and the tests made; results in runs/ are kept
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
