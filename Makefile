# make quickstart   environment, then the embedded default end to end on the CPU
# make test         environment, then the whole test suite
# make help         everything else

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs
# Where torch comes from. PyPI's Linux build brings gigabytes of CUDA along; the CPU build is enough, as JAX does the computing:
#   make env TORCH_SOURCE="--index-url https://download.pytorch.org/whl/cpu"
TORCH_SOURCE ?=
TEST_WORKERS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: help env quickstart test coverage soak acceptance scale lint format benchmark constraints clean

help:
	@echo "make env         builds $(VENV) from pyproject.toml and constraints.txt"
	@echo "make quickstart  synthetic town -> VLM -> hidden states -> planner -> reinforcement learning -> report, in $(WORKDIR)/quickstart_rl"
	@echo "make test        the whole test suite;  make coverage  the same with the lines it reaches"
	@echo "make acceptance  quickstart and the mini experiments in full, with the figures they must reach"
	@echo "make scale       several processes, and every placement on eight virtual devices, against one device"
	@echo "make soak        200 kills of a training run, each resumed bit for bit"
	@echo "make benchmark   planner beside plain PyTorch, PDM scores per second, scenes to score in per second, VLM steps, hidden states, DiffGRPO steps"
	@echo "make lint        ruff check and format check;  make format  applies them"
	@echo "make constraints writes the versions of $(VENV) to constraints.txt"

env: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt recogdrive/version.py
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed, found " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH_SOURCE) torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

# The VLM learns from conversations, is seen as a planner of its own, and makes the hidden states that the planner learns
# from, and then from the score of its own plans. The ego-status MLP is there for its row in the reports. The runs share
# compiled programs.
quickstart: export JAX_COMPILATION_CACHE_DIR ?= $(WORKDIR)/.jax_cache
quickstart: $(INSTALLED)
	$(BIN)/python -m recogdrive.main --experiment=baseline_ego_status_mlp --workdir=$(WORKDIR)/baseline_ego_status_mlp \
	  --gin_bindings VAL_SCENES=64
	$(BIN)/python -m recogdrive.main --experiment=quickstart_sft --workdir=$(WORKDIR)/quickstart_sft
	$(BIN)/python -m recogdrive.main --experiment=quickstart_vlm_eval --workdir=$(WORKDIR)/quickstart_vlm_eval \
	  --gin_bindings "VLM_WEIGHTS='$(WORKDIR)/quickstart_sft'"
	$(BIN)/python -m recogdrive.main --experiment=quickstart_cache --workdir=$(WORKDIR)/quickstart_cache \
	  --gin_bindings "VLM_WEIGHTS='$(WORKDIR)/quickstart_sft'"
	$(BIN)/python -m recogdrive.main --experiment=quickstart --workdir=$(WORKDIR)/quickstart \
	  --gin_bindings "HIDDEN_CACHE='$(WORKDIR)/quickstart_cache'" \
	  --gin_bindings "EGO_STATUS_MLP='$(WORKDIR)/baseline_ego_status_mlp'"
	$(BIN)/python -m recogdrive.main --experiment=quickstart_rl --workdir=$(WORKDIR)/quickstart_rl \
	  --gin_bindings "PARENT='$(WORKDIR)/quickstart'" --gin_bindings "HIDDEN_CACHE='$(WORKDIR)/quickstart_cache'" \
	  --gin_bindings "EGO_STATUS_MLP='$(WORKDIR)/baseline_ego_status_mlp'"

# The suite and the experiments in full share compiled programs; `make quickstart` within has its own, as for a user.
# Files go to the workers in the order of their names, which has the long ones first: reordered, they would be last.
test acceptance scale: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not soak and not acceptance and not scale" -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_OPTIONS)

coverage:
	$(MAKE) test TEST_OPTIONS="--cov=recogdrive --cov-report=term"

soak: $(INSTALLED)
	$(BIN)/python -m pytest -m soak

scale: $(INSTALLED)
	$(BIN)/python -m pytest -m scale -rP

acceptance: $(INSTALLED)
	$(BIN)/python -m pytest -m acceptance -n $(TEST_WORKERS) --dist loadfile -rP

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/planner_step.py
	$(BIN)/python benchmarks/pdm_score.py
	$(BIN)/python benchmarks/metric_cache.py
	$(BIN)/python benchmarks/vlm_step.py
	$(BIN)/python benchmarks/hidden_cache.py
	$(BIN)/python benchmarks/grpo_step.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(INSTALLED)
	@echo '# Exact versions the test suite runs with (Python 3.11, Linux, CPU). Written by `make constraints`.' > constraints.txt
	@$(BIN)/pip freeze --exclude-editable | sed -e 's/+cpu//' -e 's/^torch @ .*/torch==2.13.0/' >> constraints.txt

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .hypothesis .coverage*
