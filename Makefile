# Everything sets itself up in .venv; nothing outside this directory is touched but the caches of pip and numba.
# Another Python, another place: make test PYTHON=/usr/bin/python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed

# Hundreds of processes start here: what one has compiled, the next one finds, where it may write it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test bench gpu chaos sim proto check clean
help: ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(RUNS) ## train on real images through a server that is killed in the middle
	@$(BIN)/adamd demo

test: $(STAMP) ## the tests, on a real store that they start themselves
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

bench: $(STAMP) ## adamd beside torch RPC, MXNet, Ray, a naive service and local Adam; under load
	@$(BIN)/python -m bench

gpu: ## what only an NVIDIA GPU can tell: selftest, tests, bench; writes bench/GPU.md
	@.ci/gpu

chaos: $(STAMP) ## 100 kill -9 of the server, 30 of the store, 200 within rounds, a disk full 30 times, 8 failovers to replicas that are behind
	@$(BIN)/python -m pytest -q -m chaos tests/chaos -s

sim: $(STAMP) ## 2,000 power cuts of the bulk's simulated disk (SIM_CRASHES, SIM_SEED); planted faults are found
	@SIM_CRASHES=$${SIM_CRASHES:-2000} $(BIN)/python -m pytest -q -s --timeout 3600 tests/store/bulk/test_simulation.py

proto: ## adamd.proto linted, compared with the released one, and its Python code written anew
	@.ci/proto

check: $(STAMP) ## ruff, mypy, the direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

$(RUNS): pyproject.toml
	@.ci/venv $(PYTHON) $(VENV) $(if $(filter command,$(origin PYTHON)),asked)
	@echo "installing adamd and its demo into $(VENV): a minute, or what the network takes …"
	@.ci/install $(BIN) -e '.[service,demo]'
	@touch $@

$(STAMP): $(RUNS)
	@echo "installing what its tests need …"
	@.ci/install $(BIN) --upgrade pip
	@.ci/install $(BIN) --group dev
	@touch $@

clean: ## remove what make made
	rm -rf $(VENV) $(addprefix .venv-,oldest newest demo proto torch jax flower gpu languages) .bench .nvrtc .pytest_cache .mypy_cache .ruff_cache .hypothesis
