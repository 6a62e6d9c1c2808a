# make install      .venv with the package and everything that its tests need, in the pinned versions
# make quickstart   the main job on embedded data: three strategies, three seeds
# make test         the tests (the slow ones too: make test-all)
# make lint         style and types
# make docs         the documentation site, in build/site
# make bench        Graft against plain loops, the quick comparisons (docs/performance.md has the others)
PYTHON ?= python3
BIN = .venv/bin
PIP = python -m pip install --quiet --disable-pip-version-check
# uv installs in a fraction of pip's time, and can resolve to the lowest versions
UV = uv>=0.9,<1

# Files in their order: sorted by their number of tests, as is the default, the few long ones of end_to_end come last, and
# one core is idle for minutes.
PARALLEL = -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: install quickstart test test-all test-oldest test-engines lint docs bench audit weights clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) '$(UV)'
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/installed

quickstart: install
	$(BIN)/graft train -m experiment=quickstart strategy=scratch,feature_extract,finetune seed=0,1,2

test: install
	$(BIN)/python -m pytest $(PARALLEL)

test-all: install
	$(BIN)/python -m pytest $(PARALLEL) -m ''

# The tests with the lowest version of every direct dependency; TESTS= selects some of them.
build/oldest/installed: pyproject.toml
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/$(PIP) '$(UV)'
	build/oldest/bin/uv pip install --quiet --python build/oldest/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

test-oldest: build/oldest/installed
	build/oldest/bin/python -m pytest $(PARALLEL) $(TESTS)

# A real Slurm and a real Ray on this machine; tests of what is not installed are skipped (apt-get install slurm-wlm munge).
test-engines: install
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[slurm,ray]'
	$(BIN)/python -m pytest -m 'slurm or ray' tests/engines

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Fails on a broken link, a missing page or a reference without target.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: install
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.images_in --quick
	$(BIN)/python -m benchmarks.training_step --quick
	$(BIN)/python -m benchmarks.whole_run --quick
	$(BIN)/python -m benchmarks.memory --features 500

# Known vulnerabilities of the pinned dependencies, according to the Python Packaging Advisory Database.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/$(PIP) 'pip-audit>=2.9,<3'
	build/audit/bin/pip-audit --disable-pip --no-deps -r constraints.txt

# Trains the bundled weights again on CIFAR-10 (in data/, downloaded if missing): about 35 minutes on two cores.
weights: install
	$(BIN)/graft train experiment=cifar10_vgg_mini hydra.run.dir=outputs/train/vgg_mini
	$(BIN)/graft train experiment=cifar10_vgg_mini_polish hydra.run.dir=outputs/train/vgg_mini_polish \
		model.weights=outputs/train/vgg_mini/checkpoints/best.ckpt
	$(BIN)/python -m graft.tasks.bundle outputs/train/vgg_mini_polish

clean:
	rm -rf .venv build dist
