# SPDX-License-Identifier: MIT
# The front door. Everything it makes is under .venv and .cache, which git ignores.

KERNEL ?= 7.2
CPUS   ?= 2
MEM    ?= 3G
LEASE  ?=
OVER   ?= loop stripe mirror
PYTHON ?= python3
PREFIX ?= /usr/local
DESTDIR ?=

VENV := .venv
BIN  := $(VENV)/bin
LAB   = $(PYTHON) -m tests.lab
SOURCES := pyproject.toml meson.build meson.options LICENSE \
	$(wildcard ublkd/*.py ublkd/*.pyi ublkd/cli/*.py ublkd/target/*.py ublkd/core/* targets/* targets/*/*)

# A connection has a CPU of its own, and guests have two.
FOUR_CPUS := tests/device/test_nbd_connections.py

C_SOURCES := $(wildcard ublkd/core/*.[ch] targets/*.[ch] targets/nbd/*.[ch] tests/core/*.[ch] tests/bench/*.[ch])

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help deps install-dev demo test lab shell lint format types unit core core-asan device soak soak-faults soak-lives soak-memory soak-nbd soak-systemd systemd package install uninstall man deb bench-quick bench-stripe bench-nbd bench-bound clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

deps: ## what the build and the lab need from the system
	@sh tests/deps.sh

$(VENV)/tools.stamp: pyproject.toml tests/deps.sh
	@$(MAKE) --no-print-directory deps
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install -qq --upgrade 'pip >= 25.1'
	$(BIN)/python -m pip --disable-pip-version-check install -qq \
		--group build --group test --group lint
	@touch $@

# Not editable: the lab sees the folder read-only, and a stranger gets a wheel as well.
$(VENV)/installed.stamp: $(VENV)/tools.stamp $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip --disable-pip-version-check install \
		-qq --force-reinstall --no-deps --no-build-isolation -Csetup-args=-Dwerror=true .
	$(BIN)/python -m pip --disable-pip-version-check install -qq \
		'click >= 8.2' 'cffi >= 2.1' 'pyroute2 >= 0.7.12'
	@touch $@

install-dev: $(VENV)/installed.stamp ## ublkd in .venv

lab: $(VENV)/installed.stamp ## RUN='command' [KERNEL=7.2] [CPUS=2] [MEM=3G] [COUNTING=1]: as root in a guest
	@test -n "$(RUN)" || { echo "make lab: say what to run: make lab RUN='command'" >&2; exit 2; }
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) $(if $(COUNTING),--counting) -- "$$RUN"
lab: export RUN := $(RUN)

shell: $(VENV)/installed.stamp ## an interactive shell in a guest
	@$(LAB) shell --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM)

# An explicit KERNEL means the lab; else this host serves if it can.
demo: $(VENV)/installed.stamp ## a sparse file becomes a verified disk, here or in a guest [KERNEL=] [LEASE=]
	@if [ "$(origin KERNEL)" = file ] && [ "$$(id -u)" = 0 ] && \
		{ [ -e /dev/ublk-control ] || modprobe -q ublk_drv 2>/dev/null; } && \
		$(BIN)/ublkd features >/dev/null 2>&1; then \
		PATH="$(CURDIR)/$(BIN):$$PATH" LEASE=$(LEASE) sh tests/demo.sh; \
	else \
		LEASE=$(LEASE) WORK=/scratch $(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) \
			--env LEASE --env WORK -- 'sh tests/demo.sh'; \
	fi

bench-quick: $(VENV)/installed.stamp ## the loop target beside the kernel's, counted in instructions
	@$(LAB) run --kernel $(KERNEL) --mem $(MEM) --counting -- 'python3 tests/bench/quick.py'

bench-stripe: $(VENV)/installed.stamp ## the stripe target beside the loop target, the same way
	@$(LAB) run --kernel $(KERNEL) --mem $(MEM) --counting -- 'python3 tests/bench/stripe.py'

bench-nbd: $(VENV)/installed.stamp ## the nbd target beside the kernel's nbd, the same way
	@$(LAB) run --kernel $(KERNEL) --mem $(MEM) --counting -- 'python3 tests/bench/nbd.py'

bench-bound: $(VENV)/installed.stamp ## what any server in user space can reach of the kernel's nbd at best
	@$(LAB) run --kernel $(KERNEL) --mem $(MEM) --counting -- 'python3 tests/bench/bound.py'

test: $(VENV)/installed.stamp ## lint, types, packages, unit, core (and sanitized), device on both kernels
	@$(BIN)/python tests/all.py

lint: $(VENV)/tools.stamp ## ruff and clang-format
	$(BIN)/ruff check --quiet ublkd targets tests
	$(BIN)/ruff format --check --quiet ublkd targets tests
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

types: $(VENV)/installed.stamp ## mypy --strict
	$(BIN)/mypy

format: $(VENV)/tools.stamp ## put every source into its one layout
	$(BIN)/ruff check --quiet --fix ublkd targets tests
	$(BIN)/ruff format --quiet ublkd targets tests
	$(BIN)/clang-format -i $(C_SOURCES)

unit: $(VENV)/installed.stamp ## tests that need no kernel
	$(BIN)/pytest -q -n auto tests/unit

core: $(VENV)/installed.stamp ## the C engine with a fake driver
	$(BIN)/pytest -q -n auto tests/core

core-asan: $(VENV)/installed.stamp ## the same under ASan and UBSan
	@export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	test -f .cache/core-asan/build.ninja || meson setup .cache/core-asan -Dcore_tests=true \
		-Dwerror=true -Db_sanitize=address,undefined -Db_lundef=false >/dev/null; \
	ninja -C .cache/core-asan tests/core/libcoretest.so >/dev/null
	UBLKD_CORETEST=.cache/core-asan/tests/core/libcoretest.so \
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1 \
	$(BIN)/python -m pytest -q -n auto tests/core

soak: $(VENV)/installed.stamp soak-faults soak-lives soak-memory ## [KERNEL=7.2]: the next three, all long forms but soak-nbd and soak-systemd; hours

THOROUGHLY = THOROUGH=1 pytest -p no:cacheprovider -q -s

soak-faults: $(VENV)/installed.stamp ## [KERNEL=7.2] [OVER='loop stripe mirror']: 1 GiB of faults on each lease, and a cut at every byte; long
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) --deadline 7200 -- \
		'python3 tests/device/soak.py $(OVER) && $(THOROUGHLY) tests/device/test_poison.py'

LIVES := recovery upgrade killed_anywhere races races_any stands_still many_devices

soak-lives: $(VENV)/installed.stamp ## [KERNEL=7.2] [LIVES='recovery ...']: 100 kills, 20 upgrades, killed before every step, races, a minute of SIGSTOP, 64 devices; long
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) --deadline 14400 -- \
		'$(THOROUGHLY) $(LIVES:%=tests/device/test_%.py)'

soak-memory: $(VENV)/installed.stamp ## [KERNEL=7.2]: dirty pages in a small guest with a memory hog, for 5 minutes each way; long
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem 1536M --deadline 3600 -- \
		'$(THOROUGHLY) tests/device/test_short_of_memory.py'

soak-nbd: $(VENV)/installed.stamp ## [KERNEL=7.2]: each NBD server killed every 3 seconds for 2 minutes, in each way to it; long
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) --deadline 7200 -- \
		'THOROUGH=1 pytest -p no:cacheprovider -q -s tests/device/test_nbd_dies.py -k killed_again'

# What is installed: with the packages it needs, for the Python that PYTHON names.
BUILT := .cache/built
$(BUILT)/done.stamp: $(SOURCES) $(wildcard packaging/build.sh packaging/man.* docs/*.md)
	@sh packaging/build.sh $(BUILT) $(PYTHON)
	@touch $@

install: $(BUILT)/done.stamp ## [PREFIX=/usr/local] [DESTDIR=]: command, units, udev rules, manual pages, completion
	@sh packaging/install.sh $(BUILT) $(PYTHON)

uninstall: ## the same variables: take it away again, but not the device files
	@sh packaging/install.sh --remove
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export PREFIX := $(PREFIX)

man: $(BUILT)/done.stamp ## the manual pages in .cache/built/man
	@ls $(BUILT)/man

deb: ## a Debian package for this release, in dist/
	@sh packaging/deb.sh dist

DEB := .cache/deb
$(DEB)/done.stamp: $(SOURCES) $(wildcard packaging/* packaging/debian/* systemd/* docs/*.md)
	@rm -rf $(DEB)/out
	@sh packaging/deb.sh $(DEB)/out
	@touch $@

LAB_SYSTEMD = $(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) --deadline 4000 \
	--before 'sh tests/systemd/prepare.sh $(DEB)/out/*.deb'
TWO_BOOTS := .cache/systemd.disk

systemd: $(VENV)/installed.stamp $(DEB)/done.stamp ## [KERNEL=7.2] [K=]: the package, installed where systemd is process 1, and the next boot
	@rm -f $(TWO_BOOTS); truncate -s 2G $(TWO_BOOTS)
	@$(LAB_SYSTEMD) --disk $(TWO_BOOTS) -- \
		'pytest -p no:cacheprovider -q -s --durations=5 tests/systemd -k "$(K)"'
	@test -n "$(K)" || $(LAB_SYSTEMD) --disk $(TWO_BOOTS) -- \
		'pytest -p no:cacheprovider -q -s tests/systemd/next_boot.py'
	@rm -f $(TWO_BOOTS)

soak-systemd: $(VENV)/installed.stamp $(DEB)/done.stamp ## [KERNEL=7.2]: 100 daemons killed in each way to serve, and the package removed; long
	@$(LAB_SYSTEMD) --deadline 14400 -- \
		'$(THOROUGHLY) tests/systemd/test_kills.py tests/systemd/removal.py'

package: $(VENV)/installed.stamp ## sdist, wheel and editable install work
	@sh tests/package.sh

device: $(VENV)/installed.stamp ## [KERNEL=7.2]: the device tests in a guest
	@$(LAB) run --kernel $(KERNEL) --cpus $(CPUS) --mem $(MEM) -- \
		'pytest -p no:cacheprovider -q tests/device --ignore $(FOUR_CPUS)'
	@$(LAB) run --kernel $(KERNEL) --cpus 4 --mem $(MEM) -- \
		'pytest -p no:cacheprovider -q $(FOUR_CPUS)'

clean: ## forget what was built, keep the kernels
	rm -rf $(VENV) .cache/core .cache/core-asan .cache/core.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
