# lbd: `make help` lists what can be made.

PREFIX  ?= /usr
DESTDIR ?=
# The distribution's Python: python3-nftables, the binding to libnftables, exists only there.
PYTHON  ?= /usr/bin/python3

VENV   := .venv
PY     := $(VENV)/bin/python
LIBDIR := $(PREFIX)/lib/lbd
DOCDIR := $(PREFIX)/share/doc/lbd

RUN_PACKAGES  := python3-venv python3-nftables nftables iproute2
TEST_PACKAGES := systemd-container dnsmasq-base nginx-light openssl
EMULATION_PACKAGES := qemu-system-x86 busybox-static kmod

# Debian packages, asked for only when one is missing, so that a second run needs neither root nor a network.
define packages
	@missing=; \
	for package in $(1); do \
		dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ]; then echo "missing Debian packages; as root: apt-get install$$missing" >&2; exit 1; fi; \
	echo "installing Debian packages:$$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq || echo "apt-get update failed, trying with the lists at hand" >&2; \
	apt-get install -y -qq --no-install-recommends $$missing </dev/null
endef

# The tests start servers of their own, in namespaces: a package must not start its service beside them.
define unstarted
	@dpkg-query -W -f '$${db:Status-Status}' $(1) 2>/dev/null | grep -qx installed || [ "$$(id -u)" != 0 ] || \
		[ ! -d /run/systemd/system ] || { systemctl mask -q $(1).service && \
		echo '$(1) is installed for the tests only: to use its service, systemctl unmask $(1)'; }
endef

.PHONY: help venv dev demo check test test-emulated bench bench-health man install uninstall clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
	@echo "  install and uninstall take PREFIX (now $(PREFIX)) and DESTDIR"

venv: $(VENV)/run.stamp ## .venv with what lbd needs to run
dev: $(VENV)/dev.stamp ## .venv with what its tests need, too

$(VENV)/run.stamp: pyproject.toml
	$(call packages,$(RUN_PACKAGES))
	[ -x $(PY) ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: venv ## the experiment in network namespaces, step by step (root)
	$(VENV)/bin/lbd demo

check: dev ## format, lint, types, import rules, pure tests (no root)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PY) -m pytest -q -m 'not kernel and not systemd' --ignore tests/systemd

# Under systemd first and alone, since some of its times are contracts; then the rest, three files at a time,
# since they wait most of the time.
test: dev ## every test; namespaces and a real systemd need root
	$(call unstarted,nginx)
	$(call packages,$(TEST_PACKAGES))
	$(PY) -m pytest -m systemd
	$(PY) -m pytest -m 'not systemd' -n 3 --dist loadfile

test-emulated: dev ## tests that need a kernel with flowtables and SCTP: on Debian's, emulated (root)
	$(call packages,$(EMULATION_PACKAGES))
	$(PY) tests/emulated/boot.py $(TESTS)

bench: venv ## what lbd costs at 1 and at 10,000 services (root)
	$(PY) bench/growth.py

bench-health: venv ## what checking 10,000 backends costs (root)
	$(PY) bench/health.py

# The page is of the command line itself; tests/test_manual.py holds that it is up to date.
man: dev ## docs/lbd.8
	COLUMNS=80 $(VENV)/bin/argparse-manpage --module lbd.cli --function parser --prog lbd --project-name lbd \
		--description 'a declarative layer-4 load balancer' --manual-section 8 --manual-title lbd \
		--format single-commands-section --include docs/lbd.8.include --output docs/lbd.8

# The dependencies lie beside lbd in a directory of their own: nothing of the distribution's Python is shadowed or
# upgraded. It is built aside and swapped in, so that an interrupted install leaves the old one working.
install: $(VENV)/run.stamp ## lbd, its command, unit and example into DESTDIR/PREFIX
	rm -rf '$(DESTDIR)$(LIBDIR).new' build
	umask 022; $(PY) -m pip install -q --disable-pip-version-check --no-warn-script-location --no-compile \
		--target '$(DESTDIR)$(LIBDIR).new' .
	rm -rf '$(DESTDIR)$(LIBDIR).new/bin' '$(DESTDIR)$(LIBDIR)' build
	mv '$(DESTDIR)$(LIBDIR).new' '$(DESTDIR)$(LIBDIR)'
	umask 022; $(PYTHON) -m compileall -q -s '$(DESTDIR)' -p / '$(DESTDIR)$(LIBDIR)'
	printf '%s\n' '#!$(PYTHON) -I' 'import sys' 'sys.path.insert(0, "$(LIBDIR)")' \
		'from lbd.cli import main' 'sys.exit(main())' | install -D -m 755 /dev/stdin '$(DESTDIR)$(PREFIX)/bin/lbd'
	sed 's|/usr/|$(PREFIX)/|' systemd/lbd.service | \
		install -D -m 644 /dev/stdin '$(DESTDIR)$(PREFIX)/lib/systemd/system/lbd.service'
	install -D -m 644 systemd/lbd.sysusers.conf '$(DESTDIR)$(PREFIX)/lib/sysusers.d/lbd.conf'
	install -D -m 644 -t '$(DESTDIR)$(DOCDIR)' README.md CHANGELOG.md LICENSE $(wildcard docs/*.md)
	install -D -m 644 -t '$(DESTDIR)$(PREFIX)/share/man/man8' docs/lbd.8
	install -D -m 644 -t '$(DESTDIR)$(DOCDIR)/examples' etc/lbd.toml
	[ -e '$(DESTDIR)/etc/lbd.toml' ] || install -D -m 644 -t '$(DESTDIR)/etc' etc/lbd.toml
	[ -n '$(DESTDIR)' ] || systemd-sysusers lbd.conf
	[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload
	@echo 'installed. Edit /etc/lbd.toml, then: systemctl enable --now lbd'

# /etc/lbd.toml and /var/lib/lbd are the administrator's; the kernel state goes with `lbd apply --remove` before.
uninstall: ## what install put there, except /etc/lbd.toml and the user
	[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl disable --now lbd.service
	rm -rf '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(DOCDIR)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/lbd' '$(DESTDIR)$(PREFIX)/lib/systemd/system/lbd.service' \
		'$(DESTDIR)$(PREFIX)/lib/sysusers.d/lbd.conf' '$(DESTDIR)$(PREFIX)/share/man/man8/lbd.8'

clean: ## what was built here
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .emulated
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
