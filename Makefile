# Each target is a line or two that could be typed by hand. Needed beforehand: Python 3.11, git, make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OUT := $(CURDIR)/out
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/installed ## learn to draw digits from captions: servers, the main job, a table and a picture (FRESH=1: anew)
	@$(RUN) -m cluster.local up
	@$(RUN) -m jobs.submit experiment digits-demo --out "$(OUT)" $(if $(FRESH),--fresh) && \
	echo "MLflow and Ray go on running: make stop ends them. Look again: make up"

test: $(VENV)/installed-dev ## all tests, on the CPU and without network
	$(RUN) -m pytest $(TESTS)

check: $(VENV)/installed-dev ## lint and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

up: $(VENV)/installed ## start Ray and MLflow on loopback, where they do not run already
	@$(RUN) -m cluster.local up

stop: ## stop what `make up` or `make demo` of this folder started
	@if [ -x $(RUN) ]; then $(RUN) -m cluster.local stop; else echo "nothing was started from here"; fi

clean: stop ## remove all that was made here: environment, servers' state, results
	@if [ -L .local/ray ]; then rm -rf "$$(readlink .local/ray)"; fi
	rm -rf $(VENV) .local "$(OUT)" *.egg-info .pytest_cache .ruff_cache .hypothesis

constraints: $(VENV)/installed-dev ## write constraints.txt anew from what is installed here
	{ grep '^#' constraints.txt; $(RUN) -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.part
	mv constraints.part constraints.txt

# an interrupted installation leaves no stamp and is taken up again
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian, apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV): some minutes, about 2.4 GB"
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

.PHONY: help demo test check up stop clean constraints
