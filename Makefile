# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# The commands of the README. Each sets up what it needs and then runs inside that environment.
#
# Where ROS 2 comes from: with an installation sourced (ROS_DISTRO set, ros2 found) that one is
# used, with its own colcon, from a virtual environment that sees the system's packages. Without
# one, the real ROS 2 Jazzy is installed from wheels into the virtual environment.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
DEMO_SECONDS ?= 40
# The console in the browser; 0: none.
DEMO_WEB ?= 1
# What to install as torch, if not the version in constraints.txt: a version, a file.
TORCH_SPEC ?=
# Further options for each pip install, for example --find-links FOLDER.
PIP_EXTRA ?=
# What the tests are given: TESTS=test/engine, PYTEST_ARGS="-k evict -x".
TESTS ?= test
PYTEST_ARGS ?=
# How many processes run them, 0: this one. Many wait for nodes and browsers: three keep two cores
# busy. A part of them is told from one process.
WORKERS ?= $(if $(filter test,$(TESTS)),3,0)

# How many times as many inputs hypothesis tries of each property.
EXAMPLES ?= 1

# What the working tree is held against, and by how many machines.
REV ?= HEAD
MACHINES ?= 200
SAME_AS_ARGS ?=

# Of the places where `make interrupts` raises an exception, every N-th.
EVERY ?= 1

# How long the node is soaked.
MINUTES ?= 30

VENV := .venv
RUN := tools/run.sh
# On a terminal pip shows what it downloads, with the time left.
QUIET := $(if $(MAKE_TERMOUT),,--quiet)
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check $(QUIET) $(PIP_EXTRA)

ifneq ($(and $(ROS_DISTRO),$(shell command -v ros2 2>/dev/null)),)
SYSTEM_ROS := ros
MODE := $(ROS_DISTRO)
VENV_OPTIONS := --system-site-packages
CONSTRAINTS_OPTIONS := --system-ros
# OpenCV comes with ROS (cv_bridge); only where it does not, ours is installed.
REQUIREMENTS = runtime web serve test $(shell $(VENV)/bin/python -c "import cv2" 2>/dev/null || echo opencv)
COLCON := $(shell command -v colcon 2>/dev/null)
else
MODE := wheels
REQUIREMENTS := runtime opencv web serve test ros-jazzy
COLCON := $(VENV)/bin/colcon
endif

INTERFACES := $(wildcard msg/*.msg srv/*.srv action/*.action)
# Found by make each time, so that a new, changed or deleted file is installed.
SOURCES := $(shell find stream_vlm_ros config launch examples -type f -not -path '*/__pycache__/*' \
	2>/dev/null) $(INTERFACES) CMakeLists.txt package.xml tools/executable.in tools/build.sh
SOURCE_LIST := build/.sources
YAML_FILES := $(wildcard *.yml .*.yaml config/*.yaml .github/workflows/*.yml)

.PHONY: help setup browser demo test test-slow interrupts history-proof ray soak fuzz-bags fuzz-videos fuzz-checkpoints \
	same-as coverage bench docs picture console-picture report-picture site lint format headers clean check FORCE

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: install/.built  ## Virtual environment, ROS 2, the package built into install/

browser:  ## The Chromium that the console's tests drive, where it is missing (as root, by apt-get)
	@tools/browser.sh

demo: setup  ## Run the whole system on a video and ask it questions (DEMO_SECONDS=40 DEMO_WEB=1)
	@DEMO_SECONDS=$(DEMO_SECONDS) DEMO_WEB=$(DEMO_WEB) $(RUN) python -m stream_vlm_ros.demo $(DEMO_ARGS)

# From the folder test/: the repository's root must not be importable (test/test_layout.py). And
# without the pytest plugins that happen to be on the machine: an installed ROS brings several. What
# pytest compiles is kept, whatever the shell says: half of the time to collect the tests.
PYTEST := PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE= STREAM_VLM_INSTALLED=1 \
	EXAMPLES=$(EXAMPLES) ../$(RUN) python -m pytest -p _hypothesis_pytestplugin -p pytest_timeout
# All of them in processes side by side, each with a ROS domain of its own: many wait for nodes. A
# file stays in one process, with the nodes and models that its tests share.
SIDE_BY_SIDE = $(if $(filter-out 0,$(WORKERS)),-p xdist -n $(WORKERS) --dist loadfile --max-worker-restart 0)
test: setup  ## Run the tests against the installed copy (TESTS=, PYTEST_ARGS=, WORKERS=, EXAMPLES=)
	@cd test && $(PYTEST) $(SIDE_BY_SIDE) $(abspath $(TESTS)) \
		-m "not slow" $(PYTEST_ARGS)

# Slow proofs have no limit of time.
SLOW := -m slow -o timeout=0 -o faulthandler_timeout=0
test-slow: setup  ## Run the tests marked slow (results: bench/results/test_slow.json)
	@cd test && $(PYTEST) $(abspath $(TESTS)) $(SLOW) \
		$(if $(filter test,$(TESTS)),--results ../bench/results/test_slow.json) $(PYTEST_ARGS)

interrupts: setup  ## Raise at every opcode of a commit, and 120 SIGINTs (EVERY=40: fewer)
	@cd test && EVERY=$(EVERY) $(PYTEST) engine/test_interrupts.py $(SLOW) \
		--results ../bench/results/interrupts.json $(PYTEST_ARGS)

history-proof: setup  ## A history over 24 simulated hours, and over 100 processes that are killed
	@cd test && $(PYTEST) history/test_history_proof.py $(SLOW) \
		--results ../bench/results/history_proof.json $(PYTEST_ARGS)

ray: setup  ## Three replicas of Ray Serve and six robots, one replica killed, all replaced
	@$(PIP) -c $(VENV)/constraints.txt -r requirements/ray.txt
	@cd test && $(PYTEST) serve/test_ray.py $(SLOW) \
		--results ../bench/results/ray.json $(PYTEST_ARGS)

soak: setup  ## The node over DDS at its highest rate, with all that may happen (MINUTES=30)
	@$(RUN) python bench/soak.py --minutes $(MINUTES) --out bench/results/soak.json

fuzz-videos: setup  ## Read 1,000 damaged videos and pictures (FUZZ_ARGS="--first 5000")
	@$(RUN) python bench/fuzz_videos.py --out bench/results/fuzz_videos.json $(FUZZ_ARGS)

fuzz-checkpoints: setup  ## Load 500 checkpoint folders damaged by lot
	@OMP_NUM_THREADS=1 $(RUN) python bench/fuzz_checkpoints.py \
		--out bench/results/fuzz_checkpoints.json $(FUZZ_ARGS)

fuzz-bags: setup  ## Read 2,000 damaged rosbags, held against the whole ones
	@OMP_NUM_THREADS=1 $(RUN) python bench/fuzz_bags.py --out bench/results/fuzz_bags.json $(FUZZ_ARGS)

same-as: $(VENV)/.installed  ## Hold the working tree against a commit (REV=, MACHINES=200)
	@$(VENV)/bin/python test/equivalence/same_as.py --rev $(REV) --machines $(MACHINES) \
		--out bench/results/same_as.json $(SAME_AS_ARGS)

# The tests' own processes alone are counted, not the nodes that they start.
coverage: setup $(VENV)/.installed-dev  ## Run the tests, and say which lines none of them ran
	@cd test && COVERAGE_FILE=$(abspath build/coverage) $(PYTEST) $(SIDE_BY_SIDE) -p pytest_cov \
		--cov --cov-config=../pyproject.toml $(abspath $(TESTS)) -m "not slow" $(PYTEST_ARGS)

bench: setup  ## Run the benchmarks of the CPU (BENCH_ARGS="against_stock")
	@$(RUN) python bench/run.py $(BENCH_ARGS)

docs: install/.built  ## Rewrite what pages and config/ take from code and results
	@PYTHONPATH=. $(VENV)/bin/python tools/write_settings.py .
	@$(VENV)/bin/python bench/performance_page.py
	@PYTHONPATH=. $(VENV)/bin/python bench/experiments_page.py

picture: setup  ## Draw the README's picture: what the demo asks, and the answers
	@$(RUN) python tools/demo_picture.py docs/pictures/demo.jpg

console-picture: setup browser  ## Draw the README's picture of the console (a minute; needs Chromium)
	@$(RUN) python tools/console_picture.py docs/pictures/console.jpg

report-picture: setup  ## Draw the picture of a report in the pages (needs Chromium)
	@$(RUN) tools/report_picture.sh

site: $(VENV)/.installed-dev  ## Build the documentation site into build/site; no network
	@tools/site.sh $(VENV)/bin/mkdocs

lint: install/.built $(VENV)/.installed-dev  ## ruff, mypy, codespell, hadolint, licenses, and whether package.xml is sound
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) codespell
	@$(RUN) hadolint Dockerfile
	@$(RUN) reuse lint --lines
	@$(RUN) check-yaml $(YAML_FILES)
	@$(RUN) python -c "from catkin_pkg.package import parse_package; parse_package('.')"

format: $(VENV)/.installed-dev  ## Let ruff format the code
	@$(VENV)/bin/ruff check --fix-only .
	@$(VENV)/bin/ruff format .

headers: $(VENV)/.installed-dev  ## Write the copyright and license lines where there are none
	@tools/headers.sh $(VENV)/bin/reuse

clean:  ## Remove everything that setup made
	@tools/remove_made.sh .

check:
	@tools/check_prerequisites.sh "$(PYTHON)" $(SYSTEM_ROS)

# Named after the mode: sourcing a ROS, or another one, starts over.
$(VENV)/.created-$(MODE): | check
	@echo "== Setting up in this folder, once: some minutes, about 2 GB"
	@echo "== Virtual environment"
	@tools/remove_made.sh .
	@mkdir -p $(VENV) && touch $(VENV)/.made_by_make
	@$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	@$(VENV)/bin/python -m pip install --quiet $(PIP_EXTRA) --upgrade pip
	@touch $@

$(VENV)/.installed: constraints.txt $(wildcard requirements/*.txt) tools/make_constraints.py \
		tools/adopt_ros_wheels.py $(VENV)/.created-$(MODE)
	@echo "== torch"
	@$(PIP) $(if $(TORCH_SPEC),"$(TORCH_SPEC)",-c constraints.txt torch)
	@echo "== Python packages$(if $(SYSTEM_ROS),, and ROS 2 Jazzy)"
	@$(VENV)/bin/python tools/make_constraints.py constraints.txt $(CONSTRAINTS_OPTIONS) \
		> $(VENV)/constraints.txt
	@$(PIP) -c $(VENV)/constraints.txt $(REQUIREMENTS:%=-r requirements/%.txt)
	@$(PIP) -c $(VENV)/constraints.txt --no-deps -r requirements/demo.txt
ifndef SYSTEM_ROS
	@$(VENV)/bin/python tools/adopt_ros_wheels.py
endif
	@touch $@

# What who only runs it does not need.
$(VENV)/.installed-dev: requirements/lint.txt requirements/docs.txt $(VENV)/.installed
	@echo "== Linters, and what builds the documentation"
	@$(PIP) -c $(VENV)/constraints.txt -r requirements/lint.txt -r requirements/docs.txt
	@touch $@

# Rewritten only when the list of files changes: what depends on it then is up to date for long.
$(SOURCE_LIST): FORCE
	@mkdir -p build
	@printf '%s\n' $(sort $(SOURCES)) | cmp -s - $@ || printf '%s\n' $(sort $(SOURCES)) > $@

# The stamp carries the time of the start: what was edited during the build is built again.
install/.built: $(VENV)/.installed $(SOURCES) $(SOURCE_LIST)
	@echo "== Building with colcon"
	@touch build/.started
	@$(RUN) tools/build.sh "$(abspath $(COLCON))"
	@mv build/.started $@
