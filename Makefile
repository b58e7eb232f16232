# Everything here does its own set-up; `make setup` again does nothing until one of the files changes that it depends on.
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# onnxruntime's GPU build runs on the CPU too, but has no macOS wheels; `make setup RUNTIME=cpu` takes the smaller one.
RUNTIME ?= $(if $(filter Darwin,$(shell uname -s)),cpu,gpu)
# Further options of `cpn demo`, and of pytest for `make bench` and the tests, e.g. `make demo DEMO="--max-steps 2"`.
DEMO ?=
BENCH ?= benchmarks/
TESTS ?=

.PHONY: setup demo demo-full test test-fast test-data test-faults check docs check-kernels bench gpu-check

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,$(RUNTIME),dev]'
	@$(BIN)/python -m cpn_kernels.native_library
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/cpn demo --seeds $(SEEDS) $(DEMO)

# On to a segmentation model (about 20 minutes on two cores); the same command goes on where it was stopped.
demo-full: $(STAMP)
	$(BIN)/cpn demo --full $(DEMO)

# One torch thread per process: both cores are taken by the two pytest workers. By file: fixtures are made once. In the
# order of tests/conftest.py, not with the files of most tests first: the slow files have few.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST) $(TESTS)

test-fast: $(STAMP)
	$(PYTEST) -m 'not slow' $(TESTS)

# What needs photographs or weights that are not shipped: CPN_TEST_DATA names the folder.
test-data: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m data $(TESTS)

# Kills, starves and feeds every command with damaged files (half an hour); FAULTS="--parts kills --only label" is a part.
FAULTS ?= --output benchmarks/results/faults.json
test-faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults $(FAULTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(STAMP)
	$(BIN)/mkdocs serve

# Compiles every Triton kernel for every GPU generation (minutes, no GPU needed): no spills, no more shared memory than
# there is, tensor cores where they belong. Rewrites the table.
check-kernels: $(STAMP)
	$(BIN)/python -m cpn_kernels.offline --table benchmarks/results/kernel_resources.json

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(BENCH)

# For whoever has a GPU: PART=kernels, bench or train, each within eight minutes, figures in OUT/PART.json as they come;
# PART=all is what to ask a new GPU first, BUDGET=540 seconds of it at a time: the same command goes on where it was.
# DRY=1 takes the steps of PART=all in small forms for the CPU (minutes), to see that the way is free.
# Takes PYTHON as it is, without a virtual environment or network. DATA, WEIGHTS and BACKBONE are those of PART=train.
# ONLY=waterfall (or another step's name) gives one step of a part all its time.
OUT ?= gpu-check
gpu-check:
	$(PYTHON) -m benchmarks.gpu.check --part "$(PART)" --out "$(OUT)" $(if $(DATA),--data "$(DATA)") \
		$(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(ONLY),--only "$(ONLY)") \
		$(if $(BUDGET),--budget "$(BUDGET)") $(if $(DRY),--dry-run)
