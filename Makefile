PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt

# Compiled modules are kept: processes of tests would else compile them anew, each for itself.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: train test test-heavy test-isa test-slow check docs bench learn continual format clean

train: .venv/runtime.stamp
	$(BIN)/popgraft train configs/quickstart.yaml --set run_dir=runs/quickstart-$$(date +%Y%m%d-%H%M%S)

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: .venv/dev.stamp
	$(PYTEST)

test-heavy: .venv/dev.stamp
	$(PYTEST) -m 'heavy and not slow'

test-isa: .venv/dev.stamp
	$(BIN)/python tests/instruction_sets.py

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages that are made from the code.
docs: .venv/runtime.stamp
	$(BIN)/python docs/settings.py

# Beside other libraries, each installed in a virtual environment of its own.
bench: .venv/dev.stamp
	$(BIN)/python benchmarks/speed/run.py

# Every shipped configuration; fails where a seed falls short of its score.
LEARN := $(BIN)/python benchmarks/learning/run.py
UPGD := --set model.optimizer=adaptive_upgd \
	--set 'model.optimizer_kwargs={adaptive_noise: true, utility_gain: 2, weight_decay: 0}' \
	--set 'model.vgs={enabled: true, apply_to: step, alpha: 0.02}'
learn: .venv/dev.stamp
	$(LEARN) configs/quickstart.yaml --seeds 5 --at-least 475 --out runs/learn
	$(LEARN) configs/quickstart.yaml $(UPGD) --label quickstart_upgd --seeds 5 --at-least 475 --out runs/learn
	$(LEARN) configs/repeat_previous.yaml --seeds 5 --at-least 0.95 --out runs/learn
	$(LEARN) configs/repeat_previous.yaml $(UPGD) --label repeat_upgd --seeds 5 --at-least 0.95 --out runs/learn
	$(LEARN) configs/config_train.yaml --seeds 5 --at-least 475 --out runs/learn
	$(LEARN) configs/pendulum_novel.yaml --seeds 3 --at-least -250 --out runs/learn
	$(LEARN) configs/halfcheetah_novel.yaml --seeds 1 --set total_timesteps=600000 --at-least 500 --out runs/learn

continual: .venv/dev.stamp
	$(BIN)/python benchmarks/continual/run.py --out runs/continual
	$(BIN)/python benchmarks/continual/report.py runs/continual --picture runs/continual/curves.png

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make an install a no-op until the dependencies change.
.venv/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing popgraft into .venv: PyTorch and what it needs, a few hundred megabytes to download, some minutes."
	$(INSTALL) -e .
	touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing popgraft with what its tests need into .venv: about a gigabyte to download, some minutes."
	$(INSTALL) -e '.[dev]'
	touch .venv/runtime.stamp $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
