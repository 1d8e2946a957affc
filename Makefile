# Targets for people; `make` lists them. Everything happens in .venv, which the first target that needs it makes from the
# lock files (pinned versions, checked hashes) and which is only touched again when a lock file changed.

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-header --no-annotate \
        --python-version 3.11 --extra build

# The first Python that is new enough; 3.11 and 3.12 come first because a Redis server is packaged for them.
PYTHON ?= $(shell for one in python3.11 python3.12 python3 python3.13; do \
	$$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$one && break; done)

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help run test test-all faults soak check format bench docs lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

run: $(VENV)/.run  ## start a whole gateway: Redis, a frontend, a worker for each configured provider
	@$(BIN)/sluice up $(ARGS)

test: $(VENV)/.dev $(VENV)/.browser $(VENV)/.chaos  ## run the tests (about two minutes; with CI=true also those marked slow)
	@$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/.dev $(VENV)/.browser $(VENV)/.chaos  ## run the tests, also those marked slow
	@$(BIN)/python -m pytest --slow $(ARGS)

faults: $(VENV)/.dev $(VENV)/.chaos  ## break everything on purpose and show what callers notice (docs/reliability.md; a few minutes)
	@$(BIN)/python -m pytest tests/faults --slow $(ARGS)

soak: $(VENV)/.dev  ## two minutes of streams while things break at random, every text compared; ARGS='--seconds 600'
	@$(BIN)/python -m tests.faults.soak $(ARGS)

check: $(VENV)/.dev $(VENV)/.browser $(VENV)/.chaos  ## everything that must be green: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(BIN)/python -m pytest $(ARGS)

format: $(VENV)/.dev  ## lay out the code and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## measure side by side with a plain pass-through proxy
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.run  ## write the table of settings into README.md and .env.example, that of tests into docs/reliability.md
	@$(BIN)/python -m cli.docs
	@$(BIN)/python -m tests.faults.matrix

lock: $(VENV)/.dev  ## resolve the lock files anew
	@test -x $(BIN)/uv || $(PIP) install uv
	@$(LOCK) --upgrade -o requirements.lock
	@$(LOCK) --upgrade --extra otel -o requirements-otel.lock
	@$(LOCK) --upgrade --extra dev --extra otel -o requirements-dev.lock

clean:  ## delete the environment and all caches; keys and settings stay
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/python
	@echo "sluice: installing what it needs into $(VENV) (once; a minute or so) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock requirements.lock pyproject.toml | $(BIN)/python
	@echo "sluice: installing what it and its tests need into $(VENV) (once; a minute or so) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $(VENV)/.run $@

# The pages are tested in a real browser. Where there is none and we may install one, that is done, once; else their tests say
# why they are left out (and fail with CI=true).
$(VENV)/.browser: | $(BIN)/python
	@for one in chromium chromium-browser google-chrome google-chrome-stable; do command -v $$one; done | grep -q . \
	|| { test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; } || { \
		echo "sluice: installing Chromium, in which the pages are tested (once; a minute or so) ..."; \
		{ apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } \
			>/dev/null 2>&1 || echo "sluice: Chromium could not be installed; the pages are not tested" >&2; \
	}
	@touch $@

# Some fault tests drop packets and set clocks. Where their tools are missing and we may install them, that is done, once; else
# those tests say why they are left out.
$(VENV)/.chaos: | $(BIN)/python
	@{ command -v ip && command -v tc && command -v nft && command -v faketime; } >/dev/null \
	|| { test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; } || { \
		echo "sluice: installing iproute2, nftables and faketime for the fault tests (once) ..."; \
		{ apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends iproute2 nftables faketime; } \
			>/dev/null 2>&1 || echo "sluice: they could not be installed; some faults are not injected" >&2; \
	}
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "sluice: needs Python 3.11 or newer; on Debian: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "sluice: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "sluice: making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
