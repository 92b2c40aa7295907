# Everything from a fresh clone: `make report` and `make test` make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Threads that wait sleep instead of spinning: on cores shared with other work, spinning costs an order of magnitude.
export OMP_WAIT_POLICY ?= passive

.PHONY: report compare compare-all test lint notebooks clean

# The environment is made again when the project file changes; the marker is touched last, so that an interrupted
# installation starts over.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

report: $(VENV)/.installed
	$(BIN)/python -m merging --method samerging --suite mini8 --no-table --out out.pt
	$(BIN)/python -m diagnostics.bound_report --merged out.pt

# The tables of methods in README and docs/suites.md, and every row in docs/methods.md: five seeds of calibration and
# batches for rows that draw. Hours on two cores; interrupted, they go on. What was measured for the tables is kept in
# docs/results and is not measured again: name another folder with RESULTS. 200 steps are for the suite where they take
# a minute or two.
SUITES ?= mini8 text8
SEEDS ?= 5
RESULTS ?= docs/results
compare: $(VENV)/.installed
	for suite in $(SUITES); do more=; test $$suite != mini8 || more=samerging:perturbation=none,steps=200; \
	    $(BIN)/python -m merging compare --suite $$suite --seeds $(SEEDS) \
	    --published clip-ta8:ViT-B-32 --out $(RESULTS)/$$suite --methods average task_arithmetic ties iso_c tsv_m \
	    wudi:learning_rate=0.0001 adamerging:learning_rate=0.005 samerging samerging:perturbation=none \
	    $$more || exit; done

# All rows, one seed: their tables lie beside the others, as all.md.
compare-all: SEEDS = 1
compare-all: $(VENV)/.installed
	for suite in $(SUITES); do $(BIN)/python -m merging compare --suite $$suite --seeds $(SEEDS) \
	    --out $(RESULTS)/$$suite --table all --methods average task_arithmetic magnitude ties dare_linear dare_ties consensus pcb \
	    breadcrumbs della sce model_stock multi_slerp karcher slerp tsv_m tsv_m:scale=None tsv_m+svc iso_c iso_cts \
	    wudi wudi:learning_rate=0.0001 dc_merge ace esm knots core_space doge_ta optmerge task_arithmetic+svc \
	    ties:scale=1+lines fisher regmean regmean_plus_plus adamerging:learning_rate=0.005 adamerging_task \
	    adamerging++ adarank frank_wolfe samerging samerging:perturbation=none \
	    prodistill prodistill_entry symerge gauss_newton tangent || exit; done

# THREADS: what OpenMP and BLAS may use; the tests themselves compute on one thread.
THREADS ?= 1
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest

# Runs every notebooks/*.py and writes the .ipynb beside it: the same bytes as long as the results are the same.
notebooks: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m notebooks.execute

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) report compare out.pt build *.egg-info
