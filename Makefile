# `make demo` and `make test` each do all the set-up they need: a virtual environment in .venv, the dependencies
# through constraints.txt, and the native build.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt setup.py fastssl/_build.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test lint sanitize rivals clean

demo: .venv/demo-ready
	$(BIN)/fastssl pretrain simclr --config benchmarks/demo.yaml --out runs/demo --overwrite

test: lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal
	TRITON_INTERPRET=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal tests/ops --hypothesis-profile few -k "interpreted or (fuzz and valid)"

lint: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the ops' tests on C++ kernels that check addresses and undefined behaviour
sanitize: .venv/test-ready
	.ci/sanitize $(BIN)/python

# other libraries to measure against, beside our torch: `.venv/bin/python -m benchmarks` then includes them
rivals: .venv/test-ready
	$(BIN)/python -m benchmarks.rivals --install

clean:
	rm -rf .venv build fastssl.egg-info fastssl/_build.json fastssl/*.so

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastssl needs Python 3.10 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

.venv/demo-ready: .venv/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report]'
	touch $@

.venv/test-ready: .venv/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[report,triton,dali,webdataset,video,audio,test]'
	touch $@
