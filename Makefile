# What can be done here, in one word each. `make test` is what must pass; `make demo` needs nothing but Rust and a C compiler.

CARGO ?= cargo
TESTED = --locked --no-default-features --features kafka,amqp,http,s3,controls
TIMED = scripts/timed
# OpenSSL's build is a good part of a first one: the machine's is taken where it can be.
VENDORED = $(shell pkg-config --exists openssl 2>/dev/null || echo ,vendored)

.PHONY: help demo quick build test test-packaging lint fmt bench mutants soak setup clean-tools tested
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## a complete example in one process: an application, a relay to a file, a projection into a table
	$(CARGO) run --locked --profile quick --no-default-features -- demo

FEATURES ?= kafka

quick: ## a binary to try things with, built in a fraction of the time: target/quick/outboxd, with Kafka (FEATURES=amqp: RabbitMQ)
	$(CARGO) build --locked --profile quick --no-default-features --features $(FEATURES)$(VENDORED)

build: ## the release binary, with Kafka and RabbitMQ, in target/release/outboxd
	$(CARGO) build --locked --release

setup: ## what the tests need: Debian packages, Kafka's jars, Python environments, a Go driver (only what is missing)
	@$(TIMED) setup scripts/setup

lint: ## clippy and formatting, as `make test` asks for them
	@$(TIMED) clippy $(CARGO) clippy $(TESTED) --all-targets -- -D warnings
	@$(TIMED) format $(CARGO) fmt --check

.NOTPARALLEL:

test: setup lint ## everything, against a real Kafka and a real RabbitMQ
	@rm -rf target/proof
	@$(TIMED) tests $(CARGO) test $(TESTED)
	@scripts/proof summary

test-packaging: ## the packages as an operator has them: units in a booted machine (needs root; ARGS=--binary FILE: builds no release)
	@$(TIMED) setup scripts/setup packaging
	@$(TIMED) packaging scripts/test-packaging $(ARGS)

tested: # how the tests are built, for commands by hand
	@echo "$(TESTED)"

bench: setup ## the speed of all parts beside that of bare clients and loops (ARGS=--quick: a smoke run; ARGS="--only NAME": one part)
	@$(TIMED) bench $(CARGO) bench --locked --no-default-features --features kafka,amqp,http --bench speed -- $(ARGS)

mutants: ## changes verdict, retry and settlement in every small way, and asks that a test notices (ARGS=--file ...: others)
	@$(TIMED) mutants scripts/mutants $(ARGS)

HOURS ?= 1

soak: setup ## the same faults with larger counts and new seeds, for HOURS; goes on where the last one stopped, writes RELIABILITY.md
	@$(TIMED) soak scripts/soak $(HOURS)

fmt: ## formats the code
	$(CARGO) fmt

clean-tools: ## removes what `make setup` put under .tools
	rm -rf .tools
