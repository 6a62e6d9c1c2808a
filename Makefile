# make quickstart   .venv, the package, and the main job on embedded data: three strategies, three seeds
# make test         the tests (the slow ones too: make test-all)
# make bench        Graft against plain loops, the quick comparisons (docs/performance.md has the others)
PYTHON ?= python3
BIN = .venv/bin

.PHONY: install quickstart test test-all test-oldest test-engines lint bench audit weights clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/installed

quickstart: install
	$(BIN)/graft train -m experiment=quickstart strategy=scratch,feature_extract,finetune seed=0,1,2

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-all: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m ''

# The tests with the lowest version of every direct dependency; TESTS= names some of them.
build/oldest/installed: pyproject.toml
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	build/oldest/bin/uv pip install --quiet --python build/oldest/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

test-oldest: build/oldest/installed
	build/oldest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(TESTS)

# A real Slurm and a real Ray of this machine; what is not installed is skipped (apt-get install slurm-wlm munge).
test-engines: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm,ray]'
	$(BIN)/python -m pytest -m 'slurm or ray' tests/engines

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.images_in --quick
	$(BIN)/python -m benchmarks.training_step --quick
	$(BIN)/python -m benchmarks.whole_run --quick
	$(BIN)/python -m benchmarks.memory --features 500

# Known vulnerabilities of the pinned dependencies, as the Python Packaging Advisory Database has them.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
	build/audit/bin/pip-audit --disable-pip --no-deps -r constraints.txt

# The bundled weights, made again: CIFAR-10 in data/ (downloaded where it is not), about 35 minutes on two cores.
weights: install
	$(BIN)/graft train experiment=cifar10_vgg_mini hydra.run.dir=outputs/train/vgg_mini
	$(BIN)/graft train experiment=cifar10_vgg_mini_polish hydra.run.dir=outputs/train/vgg_mini_polish \
		model.weights=outputs/train/vgg_mini/checkpoints/best.ckpt
	$(BIN)/python -m graft.tasks.bundle outputs/train/vgg_mini_polish

clean:
	rm -rf .venv build dist
