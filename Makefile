# make serve    the server on embedded defaults (PORT=8000, DATA_DIR=data, ARGS=...)
# make test     all tests, in JOBS=2 processes     make lint    style and types
# make bench    the benchmarks, as a table
# make fuzz     the parsers against random input (ARGS="query --seconds 600")
# make debug-test  the core's tests, built with bounds checks (ARGS=--address: AddressSanitizer)
# make lock     pins the dependencies anew

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000
DATA_DIR ?= data
ARGS ?=
JOBS ?= 2
SOURCES := setup.py pyproject.toml $(shell find ichicore csrc -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.c' -path 'csrc/*' -o -name '*.h' 2>/dev/null)

.PHONY: serve test debug-test lint bench fuzz lock clean check-system

serve: $(VENV)/built
	$(BIN)/ichibase serve --port $(PORT) --data-dir $(DATA_DIR) $(ARGS)

# Many tests are about time. Those that fail get a second run by themselves, which has to pass.
test: $(VENV)/built $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS) || { \
	  echo "once more, the tests that failed:"; \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(ARGS); }

lint: $(VENV)/built $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/built $(VENV)/dev
	$(BIN)/python -m bench.run $(ARGS)

fuzz: $(VENV)/built $(VENV)/dev
	$(BIN)/python -m pip install -q --disable-pip-version-check "atheris>=3,<4"
	$(BIN)/python -m tests.fuzz $(ARGS)

debug-test: $(VENV)/built $(VENV)/dev
	$(BIN)/python tools/debug_test.py $(ARGS)

check-system:
	@$(PYTHON) tools/check_system.py

$(VENV)/runtime: requirements.txt | check-system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/runtime
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/built: $(VENV)/runtime $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 server ichicore  # else every process does it at its start
	@touch $@

lock:
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --python-version 3.11 --extra documents --group build pyproject.toml -o requirements.txt
	uv pip compile -q --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --python-version 3.11 --extra documents --group build --group dev pyproject.toml -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf $(VENV) .build build *.egg-info
	find ichicore server -name '*.so' -delete
