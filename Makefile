# make demo: the main job, with nothing but Python 3.11+, pip and make.   make test: everything that is checked.

PYTHON ?= python3
BIN := .venv/bin
QUICK := tests/data tests/diffusion tests/engine tests/models tests/test_files.py tests/test_house.py tests/test_numpy_alone.py tests/test_terminal.py tests/test_words.py

.PHONY: demo test quick test-pages test-gpu soak docs bench ladder scaling endurance clean

demo: .venv/installed
	$(BIN)/minidiff demo

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist loadfile --benchmark-disable

# The inner loop: under a minute once installed. pyright checks the files that differ from the last commit; `make test` all.
# docs/contributing.md says what else to run after which change.
quick: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	(git diff HEAD --name-only --diff-filter=d; git ls-files --others --exclude-standard) | \
	  grep -E '^(minidiff|kernels)/.*\.py$$' | xargs -r $(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist worksteal --benchmark-disable $(QUICK) -m "not slow and not soak"

# The interactive parts of the docs, in a real browser (on Debian: apt-get install chromium-headless-shell).
test-pages: .venv/installed-test
	$(BIN)/python -m pytest tests/pages

# On a machine with a GPU of NVIDIA's: the tests of every kernel again, with CuPy itself; out-of-range accesses and races,
# where CUDA's own tool for them is there.
test-gpu: .venv/installed-test
	$(BIN)/pip install --quiet --editable '.[test,gpu]'
	MINIDIFF_TEST_GPU=1 $(BIN)/python -m pytest tests/kernels tests/engine tests/parity/test_training.py -k "cupy or tf32 or launch"
	@if command -v compute-sanitizer; then for tool in memcheck racecheck synccheck; do \
	  MINIDIFF_TEST_GPU=1 compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -x \
	    tests/kernels/test_tf32.py tests/kernels/test_winograd.py tests/kernels/test_norm.py \
	    tests/kernels/test_resample.py -k "cupy or tf32" || exit 1; \
	done; fi

soak: .venv/installed-test
	$(BIN)/python -m pytest -m soak

bench: .venv/installed-test
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m pytest benchmarks --benchmark-only -s

ladder: .venv/installed-test
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python benchmarks/ladder/climb.py $(ARGS)

scaling: .venv/installed-test
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python benchmarks/scaling/measure_scaling.py $(ARGS)

endurance: .venv/installed-test
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python benchmarks/endurance/endure.py $(ARGS)

docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf .venv docs/_build

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@ .venv/installed
