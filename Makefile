# The one entry: everything here wraps the CMake presets and the program `baton`. `make help` lists it.
SHELL := /bin/bash
JOBS ?= 2
SEED ?= 1
SECONDS ?= 60
DIR ?= models/demo
ARGS ?=
# A CUDA 13 toolkit; the default is made from wheels.
CUDA ?= build/cuda-13.0
# Empty, or a folder for a UCX that reaches GPU memory, made from its wheel: make bundle UCX=build/ucx
UCX ?=
RELEASE := build/release
BIN := $(RELEASE)/bin

.PHONY: help up test test-long test-clients sim golden vectors fuzz cuda bundle bench format lint setup build clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

up: build ## build and run a cluster on this machine: router, prefill worker, decode worker (ARGS="--decode=2 ...")
	@exec $(BIN)/baton up --model=models/demo $(ARGS)

test: build-all ## unit tests, goldens, 50 simulator seeds, evals and faults through real clusters
	cd $(RELEASE) && ctest --output-on-failure -j$(JOBS) -LE 'long|e2e'
	cd $(RELEASE) && ctest --output-on-failure -L e2e -LE long

test-long: test ## everything slow too
	cd $(RELEASE) && ctest --output-on-failure -L long

test-clients: build ## unmodified clients and the chat page, installed into build/clients, against a real cluster
	@command -v npm >/dev/null || deploy/setup.sh npm
	@deploy/setup.sh clients
	@tests/clients/install.sh build/clients
	python3 tests/clients/run.py --bin=$(BIN) --clients=build/clients

sim: build-all ## one simulator seed again: make sim SEED=n
	$(BIN)/baton_sim --seed $(SEED) --seeds 1 --verbose

golden: build-all ## compare with golden outputs: make golden DIR=<checkpoint with golden.safetensors>
	$(BIN)/golden_check $(DIR)

vectors: setup ## run tokenizer, chat and api test data: make vectors DIR=<folder laid out like tests/data/vectors>
	@deploy/setup.sh test
	@cmake --preset release >/dev/null
	@deploy/progress.sh "building" cmake --build $(RELEASE) -j$(JOBS) --target vectors_check
	$(BIN)/vectors_check $(if $(filter file default,$(origin DIR)),tests/data/vectors,$(DIR))

fuzz: setup ## every parser under libFuzzer, ASan and UBSan: make fuzz SECONDS=60 (of each)
	@deploy/setup.sh fuzz || true
	@command -v clang++-16 >/dev/null || { echo "make fuzz: there is no clang++-16, and libFuzzer is clang's (Debian: clang-16 libclang-rt-16-dev)" >&2; exit 1; }
	@cmake --preset fuzz >/dev/null
	@deploy/progress.sh "building" cmake --build build/fuzz -j$(JOBS) --target baton_fuzz_targets
	JOBS=$(JOBS) tests/fuzz/run.sh build/fuzz $(SECONDS)

cuda: setup ## compile everything for a Hopper GPU, and the tests of its operators (needs no GPU): build/cuda/bin
	@deploy/setup.sh cuda
	@if [ "$(CUDA)" = build/cuda-13.0 ]; then deploy/cuda.sh $(CUDA); fi
	@deploy/progress.sh "configuring" cmake --preset cuda -DBATON_CUDA_ROOT=$(abspath $(CUDA))
	@deploy/progress.sh "building" cmake --build build/cuda -j$(JOBS) --target baton baton-router baton-prefill baton-decode baton_cuda_programs

bundle: cuda ## build/baton-cuda.tar.xz: the programs for a GPU machine, with the libraries it may lack
	@if [ -n "$(UCX)" ]; then deploy/ucx.sh $(UCX); fi
	deploy/bundle.sh build/cuda/bin build/baton-cuda.tar.xz $(UCX)

bench: build-all ## benchmarks; rows go to bench/results
	bench/run.sh $(BIN)

format: setup ## clang-format over our sources
	git ls-files '*.h' '*.cc' | xargs clang-format-14 -i

lint: setup-lint ## clang-format, clang-tidy, shell and Kubernetes manifests
	git ls-files '*.h' '*.cc' | xargs clang-format-14 --dry-run -Werror
	deploy/lint.sh
	cmake --preset dev >/dev/null && cmake --build build/dev -j$(JOBS) --target baton_session_messages
	git ls-files '*.cc' | grep -v _fuzz | xargs -P $(JOBS) -n 4 clang-tidy-14 -p build/dev --quiet

setup: ## install what is missing from Debian's packages
	@deploy/setup.sh build

setup-lint:
	@deploy/setup.sh build lint

build: setup
	@deploy/progress.sh "configuring" cmake --preset release
	@deploy/progress.sh "building" cmake --build $(RELEASE) -j$(JOBS) --target baton baton-router baton-prefill baton-decode

build-all: setup
	@deploy/setup.sh test
	cmake --preset release
	cmake --build $(RELEASE) -j$(JOBS)

clean: ## remove the build folder
	rm -rf build
