# Each target sets up all it needs (see .ci/setup); a second run is quick.
.DEFAULT_GOAL := help
BIN := .venv/bin
# Modules of tests that run at once: three on two cores, because tests wait a lot. Each has servers and mounts of its own.
# They start in the order of their names (--no-loadscope-reorder), in which the long ones come first.
JOBS ?= 3
# Compiled modules are kept, whatever the environment says: the tests start hundreds of processes that import them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check words docs bench clean

help: ## Show what can be made
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "make %-8s %s\n", $$1, $$2 }'

demo: ## Mount a sample Redis and show a session
	@bash .ci/setup demo
	@$(BIN)/redisfuse demo

test: ## Run everything: check, then all tests
	@bash .ci/setup test
	@$(BIN)/pytest --collect-only -q > /dev/null & \
		$(MAKE) --no-print-directory check; status=$$?; wait; exit $$status  # meanwhile the tests are compiled
	timeout --foreground --signal=INT --kill-after=60 45m \
		$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: ## Lint, format, types, import layers and words
	@bash .ci/setup dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/check_words.py

words: ## Check only the English of names, comments, messages and documents
	@bash .ci/setup dev
	$(BIN)/python .ci/check_words.py

docs: ## Bring the sessions, tables and manual pages of the documents up to date
	@bash .ci/setup test
	$(BIN)/python -m tests.support.readme_sessions
	$(BIN)/python -m tests.support.reference
	$(BIN)/python -m tests.support.man_pages
	$(BIN)/python -m tests.support.review_pictures

bench: ## Run the benchmarks: a mount compared with direct commands and with tmpfs
	@bash .ci/setup test
	$(BIN)/python -m tests.benchmarks

clean: ## Remove what the other targets made
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
