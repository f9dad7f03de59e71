# Every chore of the project. `make` alone lists them.

SHELL := bash
# Programs that were installed for this folder alone.
export PATH := $(CURDIR)/.tools/bin:$(PATH)
target := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: help run dev start migrate build dashboard test chaos bench soak check fmt openapi

help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

run: ## Run the whole service here, with all it needs
	@exec setpriv --pdeathsig TERM scripts/run

dev: ## Run api and worker as set in .env, logging everything
	@LOG_LEVEL=$${LOG_LEVEL:-debug} exec setpriv --pdeathsig TERM scripts/start debug

start: ## Run api and worker as set in .env, built for release
	@exec setpriv --pdeathsig TERM scripts/start release

migrate: build ## Bring the database up to date, as api and worker do at their start
	@exec scripts/operate migration up

build: ## Build everything for development
	cargo build --workspace

dashboard: ## Build the dashboard that the api serves at /admin
	@exec setpriv --pdeathsig TERM scripts/dashboard build

test: ## Test everything, with servers of its own
	@exec setpriv --pdeathsig TERM scripts/test

chaos: ## Break everything while jobs run, as SEED says, and judge what is left of JOBS jobs
	@exec setpriv --pdeathsig TERM scripts/chaos

bench: ## Time the first text, with the service and without, a submit, a turn of a session, the protocol, and streams
	@exec setpriv --pdeathsig TERM scripts/bench

soak: ## See whether anything grows under a steady load; MINUTES=30
	@exec setpriv --pdeathsig TERM scripts/soak --minutes $(or $(MINUTES),30)

check: ## What must hold before a push: format, lints, docs, contract
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	cargo build --workspace --quiet
	$(target)/debug/api openapi | diff -u openapi.yaml - || { echo 'hint: `make openapi` renews it'; exit 1; }
	scripts/dashboard check
	@command -v shellcheck >/dev/null || { echo 'hint: `scripts/install` gets shellcheck'; exit 1; }
	shellcheck -x scripts/{run,start,operate,dashboard,test,chaos,bench,soak,install} scripts/*.sh .ci/run

fmt: ## Format the code
	cargo fmt

openapi: ## Write openapi.yaml from the code
	cargo build --workspace --quiet
	$(target)/debug/api openapi >openapi.yaml.new && mv openapi.yaml.new openapi.yaml
