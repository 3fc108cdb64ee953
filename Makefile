# `make train` and `make test` do all the set-up themselves; `make help` lists the rest.

PYTHON := .venv/bin/python
DEPENDENCIES := .venv/.dependencies-of-lock
READY := .venv/.ready
# The installer: the machine's, or the locked one in an environment of its own.
UV := $(shell command -v uv || echo .uv/bin/uv)

# `make train seed=1` sets a variable of make's, which nothing reads: refused, not dropped.
STRAY := $(strip $(foreach v,$(filter a% b% c% d% e% f% g% h% i% j% k% l% m% n% o% p% q% r% s% t% u% v% w% \
    x% y% z% +% ~%,$(.VARIABLES)),$(if $(filter command,$(origin $v)),$v=$($v))))
ifneq ($(STRAY),)
$(error Error: options go into ARGS, as in: make $(MAKECMDGOALS) ARGS="$(strip $(ARGS) $(STRAY))")
endif

.DEFAULT_GOAL := help
.PHONY: $(shell grep -oE '^[a-z-]+:' $(firstword $(MAKEFILE_LIST)) | tr -d :)

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

setup: $(READY)  ## .venv with the locked dependencies and the package (the others call this)

# The stamps are made last, so a set-up that was interrupted starts anew, as does a changed lock.
# One environment for all: 5.2 of its 6 GB are torch with CUDA, so less than the whole lock would
# save no time worth having.
$(DEPENDENCIES): requirements.lock
	@python=$$(for p in python3.12 python3.11 python3 python; do \
	    $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	    2>/dev/null && echo $$p && break; done); \
	if [ -z "$$python" ]; then \
	    echo "Error: Python 3.11 or 3.12 is needed, and neither is on the PATH." >&2; exit 1; fi; \
	rm -f $(READY); \
	echo "Setting up .venv with $$python: about 6 GB, half a minute with a fast connection, once."; \
	if ! command -v $(UV) >/dev/null; then \
	    $$python -m venv --clear .uv && sed -n '/^uv==/,/# via/p' $< | .uv/bin/python -m pip \
	    install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin; fi && \
	$(UV) venv --quiet --clear --python "$$python" .venv
	@# Where Python may not keep bytecode, it is made now: each start would compile torch anew.
	@$(UV) pip install --quiet --require-hashes --python $(PYTHON) -r $< \
	    $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
	@touch $@

$(READY): $(DEPENDENCIES) pyproject.toml
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(PYTHON) -e .
	@touch $@

train: $(READY)  ## train to 80 %; options by ARGS="optimizer=sgd seed=1"
	$(PYTHON) -m cifar_lightning.train $(or $(strip $(ARGS)),rehearse_without_data=true)

demo: $(READY)  ## train on generated images, half a minute
	$(PYTHON) -m cifar_lightning.train data=shapes $(ARGS)

report: $(READY)  ## a page about the newest run or sweep, in the browser; ARGS="run=FOLDER"
	$(PYTHON) -m cifar_lightning.report open=true $(ARGS)

# An option of the command from a variable of make's command line; the environment may have a NAME.
GIVEN = $(if $(filter command,$(origin $1)),'$2=$($1)')

new: $(READY)  ## a project of your own: DIR=../mynet NAME=mynet TOOLS=evaluate,report
	$(PYTHON) -m cifar_lightning.new $(call GIVEN,DIR,dir) $(call GIVEN,NAME,name) \
	    $(call GIVEN,TOOLS,tools) $(call GIVEN,WEIGHTS,weights) $(ARGS)

# Where trainings were started, and where their W&B files went: make wandb-view WANDB=FOLDER/wandb.
FROM := .
WANDB := $(FROM)/runs/wandb

wandb-view: $(READY)  ## W&B's terminal viewer on all runs of this machine; no account needed
	@test -d "$(WANDB)" || { echo "Error: there is no run in $(WANDB): make train makes one." >&2; exit 1; }
	@WANDB_DIR="$(WANDB)/.." .venv/bin/wandb leet "$(WANDB)"

wandb-sync: $(READY)  ## upload all runs that W&B does not have yet (after wandb login)
	@test -d "$(WANDB)" || { echo "Error: there is no run in $(WANDB): make train makes one." >&2; exit 1; }
	@# From there, as W&B's files name others by relative paths. Of online runs those that no server
	@# took to their end; latest-run is a link to one of all.
	@folder=$$(cd "$(WANDB)" && pwd) && cd "$(FROM)" && \
	    find "$$folder" -maxdepth 1 -type d -name '*run-*' -print0 | \
	    WANDB_DIR="$$folder/.." xargs -0 -r "$(CURDIR)/.venv/bin/wandb" sync --include-online

# By file, so that what a file's tests share is made once; ARGS="-n 0" is for a debugger. What
# is made from conf/ is written first, so that a file which was added there fails no test.
test: docs schema  ## the tests, 4 to 6 minutes on two cores; pytest's options by ARGS=
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile $(ARGS)

test-all: docs schema  ## the slow tests too, some 15 minutes more
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not gpu" -n 2 --dist loadfile $(ARGS)

test-gpu: $(READY)  ## the tests that need a GPU
	$(PYTHON) -m pytest -m gpu $(ARGS)

lint: $(READY)  ## format, rules and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: $(READY)  ## fix what `make lint` can fix itself
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

hooks: $(READY)  ## have git check each commit as make lint does
	$(PYTHON) -m pre_commit install

bench: $(READY)  ## images/s beside the network alone, a bare loop, a conventional pipeline
	$(PYTHON) benchmarks/throughput.py $(ARGS)

bench-target: $(READY)  ## seconds and compute to 80 %, recipe by recipe (hours on a CPU)
	$(PYTHON) benchmarks/time_to_target.py $(ARGS)

bench-stop: $(READY)  ## how often a run that stops at the target reaches it
	$(PYTHON) benchmarks/stop_rule.py $(ARGS)

bench-cold: $(READY)  ## seconds from a clone to the first epoch and to passing tests
	$(PYTHON) benchmarks/cold_start.py $(ARGS)

bench-pareto: $(READY)  ## accuracy, parameters, multiply-adds, images/s of all networks (hours on a CPU)
	$(PYTHON) benchmarks/pareto.py $(ARGS)

bench-wandb: $(READY)  ## what the gradient norm and W&B cost
	$(PYTHON) benchmarks/wandb_overhead.py $(ARGS)

bench-scaling: $(READY)  ## two processes, two jobs, two search workers beside one
	$(PYTHON) benchmarks/scaling.py $(ARGS)

notebooks: $(READY)  ## run the notebooks and store their outputs; other data by ARGS="data=folder"
	$(PYTHON) notebooks/store.py $(ARGS)

docs: $(READY)  ## docs/reference/configuration.md, from conf/ and its comments
	$(PYTHON) docs/reference/configuration.py

schema: $(READY)  ## docs/reference/schema/, by which editors complete and check conf/
	$(PYTHON) docs/reference/schema.py

wheel: $(READY)  ## dist/*.whl, which carries conf/ and runs from any folder
	@rm -rf build  # setuptools would pack what an earlier version left there
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    --wheel-dir dist .
	@rm -rf build

lock: $(READY)  ## update requirements.lock: versions with hashes
	.venv/bin/uv pip compile --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-emit-package cifar-lightning --no-header \
	    --output-file requirements.lock

audit: $(READY)  ## known vulnerabilities of the locked versions (needs the internet; ARGS="-s osv" asks OSV)
	@# Strict: else a package index that has no such service passes for one that knows of none.
	@# The exit code is the same for a vulnerability and for no answer; only an answer has a count.
	@said=$$($(PYTHON) -m pip_audit --strict --require-hashes --disable-pip \
	    --progress-spinner off $(ARGS) -r requirements.lock 2>&1); ended=$$?; \
	case "$$ended $$said" in \
	"0 "*|*"Found "*" known vulnerabilit"*) printf '%s\n' "$$said"; exit $$ended ;; \
	*) echo "Error: nothing was audited. pip-audit's last words:" \
	    "$$(printf '%s\n' "$$said" | tail -n 1)" >&2; exit 1 ;; esac
