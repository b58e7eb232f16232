# Everything here does its own set-up; `make setup` again does nothing until one of the files changes that it depends on.
PYTHON ?= python3
SEEDS ?= 1
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo demo-full test check check-kernels bench gpu-check

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/cpn demo --seeds $(SEEDS)

# On to a segmentation model (about 20 minutes on two cores); goes on where it was stopped.
demo-full: $(STAMP)
	$(BIN)/cpn demo --full

# One torch thread per process: both cores are taken by the two pytest workers. By file: fixtures are made once. In the
# order of tests/conftest.py, not with the files of most tests first: the slow files have few.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Compiles every Triton kernel for every GPU generation (minutes, no GPU needed): no spills, no more shared memory than
# there is, tensor cores where they belong. Rewrites the table.
check-kernels: $(STAMP)
	$(BIN)/python -m cpn_kernels.offline --table benchmarks/results/kernel_resources.json

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/

# For whoever has a GPU: PART=kernels, bench or train, each within eight minutes, figures in OUT/PART.json as they come.
# Takes PYTHON as it is, without a virtual environment or network. DATA, WEIGHTS and BACKBONE are those of PART=train.
# ONLY=waterfall (or another step's name) gives one step of a part all its time.
OUT ?= gpu-check
gpu-check:
	$(PYTHON) -m benchmarks.gpu.check --part "$(PART)" --out "$(OUT)" $(if $(DATA),--data "$(DATA)") \
		$(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(BACKBONE),--backbone "$(BACKBONE)") $(if $(ONLY),--only "$(ONLY)")
