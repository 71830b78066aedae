# make course   install into .venv, run every notebook at classroom scale, write build/course/index.html
# make lab      open JupyterLab on the notebooks
# make demo     the photo demo as a page without code, at http://localhost:8866
# make test     the unit tests, then every notebook cell by cell
# make test-colab    every notebook with the versions that Colab has, and the package installed as there
# make full DATA=folder    the full scale on the real data sets (see data/README.md); resumes
# make export DATA=folder  the shipped networks for LiteRT, ONNX and OpenVINO, each compared with Keras
# make benchmark   times and sizes in every runtime, beside other public models; on a machine that does nothing else
# make notebooks [ONLY=04] run the notebooks again and keep their outputs in place
# make sync     write the project's address into badges and set-up cells
# make clean    remove .venv, .venv-colab and build

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The build of TensorFlow for .venv. For a GPU: make full TENSORFLOW='tensorflow[and-cuda]' DATA=...
TENSORFLOW ?= $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),tensorflow-cpu,tensorflow)
DATA ?= $(FAG_DATA)
ONLY ?=

BIN := .venv/bin
READY := .venv/ready

# Notebooks run in .venv, whatever kernels the user has, and hashes don't differ between runs.
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help course lab demo test test-colab full export benchmark notebooks sync clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

course: $(READY)
	@$(BIN)/python tools/course.py $(ONLY)

lab: $(READY)
	$(BIN)/jupyter lab notebooks

demo: $(READY)
	$(BIN)/python tools/demo.py

# On the CPU, so that results are the same on a machine with a GPU; in work folders of their own, so that
# every notebook is tested as one opens it: with nothing run before. The notebooks run beside the unit tests, which
# leave a core idle most of the time; what they have to say comes after.
test: $(READY)
	@rm -rf build/test build/test-notebooks && mkdir -p build
	@export CUDA_VISIBLE_DEVICES=; \
	FAG_WORK=$(CURDIR)/build/test-notebooks $(BIN)/python -m pytest -ra --durations=20 -p no:cacheprovider notebooks \
	  > build/test-notebooks.log 2>&1 & notebooks=$$!; trap 'kill $$notebooks 2>/dev/null' INT TERM; \
	FAG_WORK=$(CURDIR)/build/test $(BIN)/python -m pytest -ra --durations=20 tests; units=$$?; \
	wait $$notebooks; notebooks=$$?; cat build/test-notebooks.log; exit $$((units | notebooks))

# As on Colab: its packages first, then what the notebooks' set-up cell installs, which must replace none of them
# (TensorFlow's other build would come by its name: so without it), and what runs notebooks there.
COLAB := .venv-colab
test-colab: $(COLAB)/ready
	@rm -rf build/test-colab
	@$(COLAB)/bin/python -m pip install -q --no-deps --force-reinstall .
	CUDA_VISIBLE_DEVICES= FAG_WORK=$(CURDIR)/build/test-colab $(COLAB)/bin/python -m pytest -ra notebooks

$(COLAB)/ready: tools/colab.txt tools/requirements.py pyproject.toml
	@echo "Installing into $(COLAB) ..."
	@$(PYTHON) -m venv $(COLAB)
	@$(COLAB)/bin/python -m pip install -q --upgrade pip
	@$(COLAB)/bin/python -m pip install -q -r tools/colab.txt ipykernel nbval pytest
	@$(COLAB)/bin/python tools/requirements.py tensorflow-cpu base > $(COLAB)/requirements.txt
	@$(COLAB)/bin/python -m pip install -q -r $(COLAB)/requirements.txt
	@$(COLAB)/bin/python tools/colab.py
	@$(COLAB)/bin/python -c 'import matplotlib.pyplot' 2>/dev/null
	@touch $@

full: $(READY)
	@$(BIN)/python tools/full.py "$(DATA)"

export: $(READY)
	@$(BIN)/python -W ignore tools/export.py "$(DATA)"
	@$(BIN)/python -W ignore tools/export.py "$(DATA)" masks

benchmark: $(READY)
	@$(BIN)/python -W ignore tools/benchmark.py --keep

notebooks: $(READY)
	@$(BIN)/python tools/notebooks.py $(ONLY)

sync: $(READY)
	@$(BIN)/python tools/sync.py

clean:
	rm -rf .venv .venv-colab build

$(READY): pyproject.toml tools/requirements.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: sudo apt install python3, or make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "This Python can't make a virtual environment: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into .venv: a download of some 600 MB the first time ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --upgrade pip
	@$(BIN)/python tools/requirements.py '$(TENSORFLOW)' > .venv/requirements.txt
	@$(BIN)/python -m pip install -q -r .venv/requirements.txt
	@$(BIN)/python -m pip install -q --no-deps -e .
	@# matplotlib says on its first use that it builds a font cache: not in a notebook, please
	@$(BIN)/python -c 'import matplotlib.pyplot' 2>/dev/null
	@touch $@
