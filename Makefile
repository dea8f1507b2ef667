# Two commands for a fresh machine: `make demo` runs the demo, `make test` the tests. Each creates .venv first if needed.
# `demo` replaces the folder demo-out; any other folder, OUT=..., must be new or empty. `clean` removes the default outputs.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
TORCH ?= torch
PIP = "$(VENV)/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt
space := $(subst ,, )
INSTALLED := $(subst $(space),\ ,$(VENV))/.installed

.PHONY: demo test lint types clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("confit-edge needs Python 3.11 or newer; choose one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv "$(VENV)"
	$(PIP) $(TORCH)
	$(PIP) -e '.[export,dev]'
	touch "$@"

demo: $(INSTALLED)
ifeq ($(OUT),demo-out)
	rm -rf demo-out
endif
	"$(VENV)/bin/confit-edge" demo --out "$(OUT)"

test: $(INSTALLED)
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(INSTALLED)
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/lint-imports"

types: $(INSTALLED)
	"$(VENV)/bin/mypy"

clean:
	rm -rf .venv demo-out dist build
