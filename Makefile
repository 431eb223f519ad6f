# Two commands do all the set-up: `make demo` and `make test`.
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTHON ?= python3

.PHONY: demo test test-slow lint format bench lessons notebooks web docs screenshots clean

demo: $(READY)            ## train, sample, fine-tune and report on this machine (about three minutes)
	$(BIN)/ai-learning demo

test: $(READY)            ## every test but the slow ones
	$(BIN)/python -m pytest

test-slow: $(READY)       ## the long end-to-end reproductions
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(READY)            ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)          ## let ruff write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)           ## side by side with the peers; fill the cores with nothing else meanwhile
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/tokenizer.py
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.compiled_loops
	@echo "with tinyshakespeare at hand: $(BIN)/python -m benchmarks.sample_efficiency --data FILE"

lessons: $(READY)         ## run every lesson and check what it asserts
	$(BIN)/python -m pytest tests/test_lessons.py -m "not gpu"

notebooks: $(READY)       ## make the notebooks anew from their sources, with outputs
	$(BIN)/python lessons/build.py

web: $(READY)             ## the playground on http://127.0.0.1:8000, with the demo's model
	@test -f runs/demo/gpt1_tiny_pretrain.pt || $(BIN)/ai-learning demo
	$(BIN)/ai-learning web

docs: $(READY)            ## the site, in site/: open site/index.html
	$(BIN)/python docs_tools/lessons.py
	$(BIN)/zensical build --clean
	@echo "open site/index.html; for its search as well: $(BIN)/python -m http.server -b 127.0.0.1 -d site"

screenshots: $(READY)     ## the pictures of the page in docs/images, made by its tests
	AI_LEARNING_SCREENSHOTS=1 AI_LEARNING_CHECKPOINT=$$(ls $$PWD/runs/demo/gpt1_tiny_pretrain.pt 2>/dev/null) \
		$(BIN)/python -m pytest tests/web/test_browser.py -m "not gpu"

clean:                    ## remove the environment (runs/ stays)
	rm -rf $(VENV)

# The stamp is touched last: an install that broke off is made again.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $(READY)
