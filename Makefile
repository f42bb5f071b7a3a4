# make up        the example mesh, from nothing (Python 3.11 or newer is all it needs)
# make test      everything that must hold, under 5 minutes on two cores
# make test-long the long tests whole, and what is slow, under 20
# make histories 100,000 random histories of the state machine instead of 1,000, a quarter of an hour; N=…
# make chaos     a quarter of an hour of kills, stops and changes at once; SECONDS=… SEED=…
# make lint      format, lint, types, import directions
# make bench     the comparisons of docs/benchmarks.md, twenty minutes or more; also ARGS=--quick
# make peers     what they compare with, and some tests talk to: apt-get as root, PyPI into .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Most tests wait for processes: two for each core. A file stays together, for what its tests share.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What Debian has of the peers, of what loads them, and what reads the units of systemd.
PEERS := haproxy nginx libnginx-mod-stream openssl stunnel4 wrk apache2-utils nghttp2-client systemd

.PHONY: install up test test-long histories chaos lint format bench peers clean

install: $(VENV)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "meshrun needs Python 3.11 or newer; name one with: make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "cannot make $(VENV): is the venv module of $(PYTHON) installed?"; exit 1; }

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/installed

up: install
	@# 130 is Ctrl-C, the usual end and no error of this target.
	@$(BIN)/meshrun up || test $$? -eq 130

test: $(VENV)/installed-dev
	$(PYTEST)

test-long: $(VENV)/installed-dev
	MESHRUN_TEST_LONG=1 $(PYTEST) -m "long or slow"

# More random histories of the state machine, and of whole sets of apps over pretended processes.
N ?= 100000
histories: $(VENV)/installed-dev
	MESHRUN_TEST_HISTORIES=$(N) $(PYTEST) --timeout 0 -k whatever_happens \
		tests/unit/test_lifecycle.py tests/unit/test_histories.py

# Everything that can happen to a mesh, at the same time; it prints the seed of what it did.
SECONDS ?= 900
SEED ?=
chaos: $(VENV)/installed-dev
	MESHRUN_TEST_LONG=1 MESHRUN_CHAOS_S=$(SECONDS) MESHRUN_CHAOS_SEED=$(SEED) \
		$(BIN)/python -m pytest -rP tests/integration/test_chaos.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without one of the peers the rest is compared: nothing that cannot be installed is an error here.
$(VENV)/installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[bench]' || \
		{ echo "left out: what PyPI has no wheel of, see above"; $(BIN)/pip install --quiet --editable .; }
	@touch $@ $(VENV)/installed

peers: $(VENV)/installed-bench
	@missing=$$(for package in $(PEERS); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || \
			printf '%s ' $$package; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update --quiet && \
			apt-get install --quiet --yes --no-install-recommends $$missing && exit 0; fi; \
	echo "left out: $$missing(as root: apt-get install $$missing)"

bench: peers
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .meshrun build dist *.egg-info src/*.egg-info \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
