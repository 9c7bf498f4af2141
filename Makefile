# make serve   the whole stack on this machine: http://127.0.0.1:9000 unless PORT says otherwise
# make test    lint, types and every test that needs no GPU, real Triton included
# make bench   measure it all: docs/performance/
# make help    all targets

# The first Python that can run the stack. Another one: make serve PYTHON=/path/to/python3
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p launcher/check_python.py >/dev/null 2>&1 && { echo $$p; exit; }; done; echo python3)
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install
CLIENTS := .venv-clients
# Two hundred packages, so uv installs them: pip takes minutes. The newest need Python 3.11, which the product does not.
UV_VERSION := 0.13.9
CLIENTS_PYTHON ?= $(shell for p in $(PYTHON) python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && { echo $$p; exit; }; done)

.PHONY: help serve bench test test-gpu check unit integration clients clients-lock deploy-tools deploy-check fuzz soak siege fleet-proof install lock clean
.DEFAULT_GOAL := help

help:
	@echo "make serve        install, build the engine once, start everything, print the address, the key and a curl line"
	@echo "                  your own model: make serve MODEL=path/to/model.gguf (or a Hugging Face directory)"
	@echo "                  other settings: make serve PORT=9001 (docs/settings.md, .venv/bin/triton-completions serve --help)"
	@echo "make install      only install, into .venv"
	@echo "make test         lint, types and every test that needs no GPU, real Triton included"
	@echo "make check        lint, format and types only"
	@echo "make unit         tests that need no Triton"
	@echo "make integration  tests on the real Triton"
	@echo "make clients      install client libraries (openai, langchain, lm-eval, ...) and run each on the real stack"
	@echo "make deploy-check download helm, kubectl, schemas and Prometheus (90 MB), and test chart and alerts with them"
	@echo "make test-gpu     tests on a GPU machine with TensorRT-LLM (GPU_PYTHON=..., GPU_ENGINE_DIR=...)"
	@echo "make bench        measure everything, about 15 minutes (QUICK=1: 2): tables and plots in docs/performance"
	@echo "make lock         resolve and pin every dependency again (needs uv: .venv/bin/pip install uv)"
	@echo "make fuzz         10,000 random request bodies"
	@echo "make soak         mixed traffic for SOAK_MINUTES (20): fails on memory growth or a wrong completion"
	@echo "make siege        an honest client beside each kind of hostile one, 10 minutes (QUICK=1: 2): fails if one is felt"
	@echo "make fleet-proof rolling restarts, scaling and killed replicas under load, 9 minutes (needs haproxy): docs/fleet.md"
	@echo "make clean        remove .venv, .venv-clients and .run"

# MAKEFLAGS has the names on the command line, so that a misspelt one is refused; make exports their values.
serve: $(VENV)/.serve
	@exec $(VENV)/bin/python -m triton_completions serve --make-flags="$$MAKEFLAGS"

# The clients need Python 3.11, which the product does not: without it they are skipped, unless NEED_CLIENTS is set.
test: check
	VENV=$(VENV) scripts/test
	@if [ -z "$(CLIENTS_PYTHON)$(NEED_CLIENTS)$(wildcard $(CLIENTS)/.installed)" ]; then \
		echo "The clients are skipped: they need Python 3.11 or 3.12 (make clients CLIENTS_PYTHON=/path/to/it)."; \
	else $(MAKE) clients; fi

check: $(VENV)/.dev
	VENV=$(VENV) scripts/check

unit: $(VENV)/.dev
	VENV=$(VENV) scripts/test unit

integration: $(VENV)/.dev
	VENV=$(VENV) scripts/test integration

clients: $(VENV)/.dev $(CLIENTS)/.installed
	$(VENV)/bin/python -m pytest tests/clients

# Without these, the chart's tests are skipped, unless NEED_DEPLOY_TOOLS is set. Downloaded once, into .run.
deploy-tools: $(VENV)/.dev
	$(VENV)/bin/python -m scripts.deploy_tools

deploy-check: deploy-tools
	NEED_DEPLOY_TOOLS=1 $(VENV)/bin/python -m pytest tests/deploy

# BENCH is further options, such as --base-url NAME=URL: docs/performance.md
bench: $(VENV)/.dev
	@exec $(VENV)/bin/python -m benchmarks run $(if $(QUICK),--quick) $(BENCH)

# On the GPU machine's own Python, which has TensorRT-LLM. Without TensorRT-LLM the tests skip with a reason.
GPU_PYTHON ?= python3
test-gpu:
	GPU_ENGINE_DIR="$(GPU_ENGINE_DIR)" $(GPU_PYTHON) -m pytest tests/gpu -m gpu -p no:cacheprovider

install: $(VENV)/.serve

# Everything comes from a lock file with hashes. --no-deps because the lock omits packages that nothing here imports
# (requirements/excluded.txt lists them, with reasons).
$(VENV)/.serve: requirements/serve.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "There is no program $(PYTHON). Name a Python 3.10, 3.11 or 3.12: make serve PYTHON=python3.11"; exit 1; }
	@$(PYTHON) launcher/check_python.py
	@$(PYTHON) launcher/install.py $(VENV)
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.serve
	$(PIP) --no-deps --require-hashes --requirement requirements/dev.lock
	@touch $@

# Node.js comes as a Python package, so that its version is pinned like the rest; its packages are in $(CLIENTS)/node.
$(CLIENTS)/.installed: requirements/clients.lock requirements/node/package.json requirements/node/package-lock.json
	@test -n "$(CLIENTS_PYTHON)" || { echo "The clients need Python 3.11 or 3.12: make clients CLIENTS_PYTHON=/path/to/it"; exit 1; }
	$(CLIENTS_PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --quiet "uv==$(UV_VERSION)"
	$(CLIENTS)/bin/uv pip install --python $(CLIENTS)/bin/python --compile-bytecode --no-deps --require-hashes \
		--requirement requirements/clients.lock
	mkdir -p $(CLIENTS)/node
	cp requirements/node/package.json requirements/node/package-lock.json $(CLIENTS)/node
	cd $(CLIENTS)/node && ../bin/npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

clients-lock:
	VENV=$(VENV) scripts/lock clients

lock:
	VENV=$(VENV) scripts/lock

# 10,000 random bodies through HTTP and Triton. To repeat a run: make fuzz FUZZ_SEED=...
fuzz: $(VENV)/.dev
	FUZZ_BODIES="$${FUZZ_BODIES:-10000}" $(VENV)/bin/python -m pytest tests/integration/test_fuzz.py -rP --timeout 1800

# Mixed traffic for SOAK_MINUTES. Fails on growth or a wrong completion; writes SOAK_OUTPUT/soak.*
soak: $(VENV)/.dev
	$(VENV)/bin/python -m build_engine build --target cpu >/dev/null
	$(VENV)/bin/python -m benchmarks.soak

# Hostile clients of every kind. SIEGE is further options, such as --only "JSON bombs" or --guides 2000: docs/reliability.md
siege: $(VENV)/.dev
	$(VENV)/bin/python -m build_engine build --target cpu >/dev/null
	@exec $(VENV)/bin/python -m benchmarks.siege $(if $(QUICK),--quick) $(SIEGE)

# Replicas behind haproxy, by the chart's timings. FLEET is further options, such as --only rolling_restart
fleet-proof: deploy-tools
	$(VENV)/bin/python -m build_engine build --target cpu >/dev/null
	@exec $(VENV)/bin/python -m benchmarks.fleet $(FLEET)

clean:
	rm -rf $(VENV) $(CLIENTS) .run
