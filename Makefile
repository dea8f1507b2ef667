# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests. Each makes .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
OUT ?= demo-out
TORCH ?= torch==2.13.0

.PHONY: demo test lint types clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("confit-edge needs Python 3.11 or newer; name one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(TORCH)
	$(PIP) -c constraints.txt -e '.[export,dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(OUT)
	$(BIN)/confit-edge demo --out $(OUT)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	MYPYPATH=.:export:runtime $(BIN)/mypy -p confit_edge -p confit_export -p confit_runtime

clean:
	rm -rf $(VENV) $(OUT) dist build
