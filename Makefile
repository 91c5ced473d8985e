# The commands of the study; `make` lists them. Knobs: STUDY (a file in params/) and PROFILE (a folder in profiles/).
STUDY ?= paper
PROFILE ?= local
CORES ?=
PYTHON3 ?= python3
WORKERS ?= $(or $(CORES),auto)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup data smoke plan reproduce sweeps reports figures publish check lab test test-quick test-faults test-cluster lint bench bench-gpu bench-conda scale elsewhere profile lock clean distclean unlock

# A text as the shell takes it for one word: paths may hold spaces, quotes, anything.
quoted = '$(subst ','\'',$(1))'

# What these start ends with make, however make ends.
smoke reproduce sweeps: export SQLIB_MADE_BY_MAKE = 1

# A home that cannot be written, as in some containers, is replaced by a folder here: for caches.
ifneq ($(shell test -n "$$HOME" && test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/build/home
$(shell mkdir -p '$(HOME)')
endif

# pip and uv install into .venv and nowhere else, the locked versions and no others, whatever the user has set. Where packages come
# from (indexes, proxies, certificates) stays theirs. What is dropped for everything else: sqlib/workflow/surroundings.py.
export PIP_USER := 0
export PYTHONNOUSERSITE := 1
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT PIP_NO_DEPS PIP_DRY_RUN
unexport UV_SYSTEM_PYTHON UV_BREAK_SYSTEM_PACKAGES UV_TARGET UV_PREFIX UV_PYTHON UV_CONSTRAINT UV_OVERRIDE UV_EXCLUDE_NEWER
unexport PYTHONHOME PYTHONUSERBASE PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS

# An active conda environment that has the packages in their locked versions is used as it is; else .venv, built on first use.
CONDA_READY := $(if $(CONDA_PREFIX),$(shell $(call quoted,$(CONDA_PREFIX)/bin/python) -m sqlib.workflow.locked && echo yes))
ifeq ($(CONDA_READY),yes)
BIN := $(CONDA_PREFIX)/bin
READY :=
BENCH := bench-conda
else
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv/.bench
endif
PYTHON := $(call quoted,$(BIN)/python)

help:  ## list the targets
	@echo 'Targets (knobs: STUDY=$(STUDY) PROFILE=$(PROFILE) CORES=all):'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## build .venv, every package checked against its hash (other targets do it when needed)
	@echo ready: $(PYTHON)

data: $(READY)  ## fetch and check MNIST and Fashion-MNIST
	@$(PYTHON) -m sqlib data

smoke: $(READY)  ## make the small study on real images, in minutes: reports/smoke/index.html
	@$(PYTHON) -m sqlib reproduce smoke --sweeps $(if $(CORES),--cores $(CORES))

plan: $(READY)  ## say how many runs STUDY still has to train, and what that costs here in time and disk
	@$(PYTHON) -m sqlib plan $(call quoted,$(STUDY)) $(if $(CORES),--cores $(CORES))

reproduce: $(READY)  ## make everything of STUDY that is missing or out of date: reports/STUDY/index.html
	@$(PYTHON) -m sqlib reproduce $(call quoted,$(STUDY)) --profile $(call quoted,$(PROFILE)) $(if $(CORES),--cores $(CORES))

sweeps: $(READY)  ## make the same, and the sweeps that chose STUDY's parameters: which ones, judged on validation images
	@$(PYTHON) -m sqlib reproduce $(call quoted,$(STUDY)) --sweeps --profile $(call quoted,$(PROFILE)) $(if $(CORES),--cores $(CORES))

reports: $(READY)  ## make all pages of STUDY again from the results that are there; trains nothing
	@$(PYTHON) -m sqlib reports $(call quoted,$(STUDY))

figures: $(READY)  ## draw every figure of STUDY as SVG and PDF too, for print; the pages link to them
	@$(PYTHON) -m sqlib figures $(call quoted,$(STUDY))

publish: $(READY)  ## copy the complete paper study to reports/reference, which is in git
	@$(PYTHON) -m sqlib publish $(call quoted,$(STUDY))

check: $(READY)  ## hold the results of STUDY against the published ones, metric by metric
	@$(PYTHON) -m sqlib check $(call quoted,$(STUDY))

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(PYTHON) -m sqlib lab

# Its kernels find what SQLIB_DATA and the like name, seen from here.
lab: export PWD := $(CURDIR)

# Where a browser is missing, what needs one is left out, and that is said; in CI nothing is, so there it fails.
test: BROWSER = $(or $(CI),$(shell command -v chromium || command -v chromium-browser || command -v google-chrome))
test: $(READY) $(BENCH)  ## run all tests, with the smoke study end to end (minutes, on all cores)
	$(if $(BROWSER),,@echo 'no Chromium here: the tests that open pages and JupyterLab in it are left out (Debian: apt-get install chromium)')
	@$(PYTHON) -m sqlib data >/dev/null
	@$(PYTHON) -m pytest -rs -n $(WORKERS) $(if $(BROWSER),,-m 'not browser')

test-quick: $(READY)  ## run the tests that need no study, browser or benchmark: what one runs while working
	@$(PYTHON) -m sqlib data >/dev/null
	@$(PYTHON) -m pytest -q -n $(WORKERS) -m 'not (browser or end_to_end or slow)'

test-faults: $(READY)  ## kill and damage a small study in every way we know, and see it made whole (half an hour; SAMPLE=yes FAULTS=3 for minutes; RECORD=yes writes the figures)
	@$(PYTHON) -m sqlib data >/dev/null
	@$(PYTHON) -m pytest -rs -n $(WORKERS) $(if $(SAMPLE),-m sample) tests/faults

test-cluster: $(READY)  ## make a small study on a SLURM cluster of two nodes started here, one of them lost half-way (root; Debian's slurm-wlm, munge)
	@$(PYTHON) -m pytest -rs tests/cluster

lint: $(READY)  ## check style, formatting, and that no package imports one above it
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(call quoted,$(BIN)/lint-imports) --no-cache --no-logo

bench: $(READY) $(BENCH)  ## measure how fast training is, against its targets: benchmarks/results.json (two idle cores, minutes)
	@$(PYTHON) benchmarks/run.py

bench-gpu: $(READY)  ## measure epochs on an NVIDIA GPU: benchmarks/gpu.json (a machine with one, 4 minutes)
	@$(PYTHON) benchmarks/gpu.py

scale: $(READY)  ## measure how cost grows with batch, width, runs and cores: benchmarks/scale.json (idle machine, a quarter of an hour)
	@$(PYTHON) benchmarks/scale.py

elsewhere: $(READY)  ## measure what other threads, precisions and processors change in a run: benchmarks/elsewhere.json (two idle cores, a quarter of an hour)
	@$(PYTHON) benchmarks/elsewhere.py

# KINETO_LOG_LEVEL: or the profiler reports on stderr, for every step, when it starts and that there is no GPU.
profile: $(READY)  ## show where a training step's time goes: benchmarks/profile.txt
	@KINETO_LOG_LEVEL=6 $(PYTHON) benchmarks/profile_step.py

lock: .venv/.uv  ## resolve the dependencies in pyproject.toml anew: requirements.lock
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --extra dev \
	    --custom-compile-command 'make lock' pyproject.toml -o requirements.lock

clean:  ## remove the reports of all studies, but not the reference
	@for folder in reports/*; do \
	    case "$$folder" in reports/reference|'reports/*') ;; *) echo "removing $$folder"; rm -rf "$$folder";; esac; \
	done

distclean: clean  ## clean, and remove the data and .venv too
	@for folder in data .venv; do \
	    if [ -e "$$folder" ]; then echo "removing $$folder"; rm -rf "$$folder"; fi; \
	done

unlock: $(READY)  ## remove locks left by a killed run of STUDY (reproduce does so by itself)
	@$(PYTHON) -m sqlib unlock $(call quoted,$(STUDY))

# .venv/.uv stands for a working installer, .venv/.ready for a complete environment: each is written last, so a
# half-built .venv is built again.
.venv/.uv: requirements-uv.txt
	@$(PYTHON3) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and \
	    "error: Python 3.11 to 3.13 is needed, %s is %d.%d: make PYTHON3=/path/to/python3.12" % (sys.executable, *v))'
	@echo 'building .venv (once; 90 s on an idle machine with a fast network)'
	@rm -rf .venv
	@$(PYTHON3) -m venv .venv || { echo 'error: venv is missing (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

# Brevitas, which the benchmarks measure against, and a test holds beside our network.
.venv/.bench: .venv/.ready requirements-bench.txt
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes -r requirements-bench.txt
	@touch $@

bench-conda:
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.txt

.venv/.ready: .venv/.uv requirements.lock pyproject.toml
	@rm -f $@
	@echo 'downloading, checking and compiling what requirements.lock names, about 6 GB ...'
	@.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements.lock requirements-uv.txt
	@.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
	@touch $@
