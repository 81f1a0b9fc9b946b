# `make help` says what there is. Every target may be run again: what is there already is not made twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BIN := .venv/bin
URL := http://127.0.0.1:8080/
# What a test of tier root changes is the whole host's: those run one at a time. Those of tier qemu wait much.
TIERS := $(foreach tier,qemu boot root,$(if $(wildcard tests/$(tier)/test_*.py),$(tier)))

.PHONY: help demo test lint bench guest setup clean install-demo install-test

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

demo: install-demo ## install what is missing, build a small guest, start it and show its page
	@tests/guest/build.sh vmdefs
	$(BIN)/kvmlaunch up web01 --wait ready
	@echo
	@echo 'The page at $(URL), served by the guest:'
	@curl -fsS --max-time 20 $(URL) | sed -e '1,/<body>/d' -e 's/<dt>\([^<]*\)<\/dt>/\1: /' -e 's/<[^>]*>//g' -e '/^ *$$/d' -e 's/^/    /'
	@echo
	$(BIN)/kvmlaunch status web01
	@echo
	$(BIN)/kvmlaunch explain web01
	@echo
	@echo 'Its console: $(BIN)/kvmlaunch console web01'
	@echo 'To end it:   $(BIN)/kvmlaunch down web01'

test: install-test lint ## install what is missing, then linters, types and all tests
	@tests/guest/build.sh vmdefs
	$(BIN)/python -m pytest -m pure -n auto
	@failed=; \
	for tier in $(TIERS); do \
		words="-m $$tier tests/$$tier"; \
		case $$tier in \
			qemu) words+=" -n $$(($$(nproc) < 4 ? $$(nproc) + 1 : 5))" ;; \
			boot) words+=' -n auto --maxprocesses 4' ;; \
		esac; \
		echo "$(BIN)/python -m pytest $$words"; \
		$(BIN)/python -m pytest $$words || failed+=" $$tier"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed tiers:$$failed" >&2; exit 1; fi

lint: install-test ## linters and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: install-test ## measure the choices that kvmlaunch makes on this machine
	@tests/guest/build.sh vmdefs
	$(BIN)/python -m tests.bench

guest: install-demo ## build the demo's guest in vmdefs/ and stop there
	@tests/guest/build.sh vmdefs

setup: install-test ## make .venv for working on kvmlaunch

clean: ## end the demo's guest and remove what make made
	@if [ -x $(BIN)/kvmlaunch ]; then $(BIN)/kvmlaunch down web01 --force >/dev/null 2>&1 || true; fi
	rm -rf .venv .cache vmdefs/web01.img vmdefs/web01.initrd vmdefs/web01.vmlinuz vmdefs/.web01.guest
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find kvmlaunch tests -name __pycache__ -type d -prune -exec rm -rf {} +

install-demo:
	@tests/install.sh demo

install-test:
	@tests/install.sh test
