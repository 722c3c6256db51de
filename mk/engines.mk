# Container engines that firstlight watch is tested beside. Podman is installed; Docker is unpacked, as
# its package would start a service; CRI-O is built by the Go toolchain and kept, as Kubernetes is.

ENGINES := .venv/libexec/engines
CRIO := 1.34.0
CRIO_KEPT := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/firstlight/cri-o-$(CRIO)

.PHONY: engines
engines: setup
	@command -v podman > /dev/null || $(SUDO) apt-get install -y -qq --no-install-recommends podman conmon
	@mkdir -p $(ENGINES); cd $(ENGINES) && [ -x usr/sbin/dockerd ] \
	  || { apt-get download -qq docker.io tini containerd > /dev/null 2>&1 \
	    && for package in *.deb; do dpkg-deb --extract $$package .; done && rm *.deb; } \
	  || echo "engines: no Docker: docker.io cannot be had" >&2
	@mk/cri-o.sh $(CRIO) $(CRIO_KEPT) && ln -sf $(CRIO_KEPT)/crio $(CRIO_KEPT)/pinns $(ENGINES)/ \
	  || echo "engines: no CRI-O: it cannot be built, see $(CRIO_KEPT)/log" >&2
