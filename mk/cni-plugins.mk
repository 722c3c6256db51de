# CNI plugins that the Go toolchain can build by module path and version, each set into a folder of
# the environment that conf/cni names in "path". What cannot be built is said, and left out.

CNI_PLUGINS := .venv/libexec/cni
GO := $(shell command -v go || ls /usr/local/go/bin/go 2>/dev/null)
plugins := github.com/containernetworking/plugins/plugins

.PHONY: cni-plugins
cni-plugins:
ifeq ($(GO),)
	@echo "cni-plugins: the Go toolchain is not installed: only Debian's containernetworking-plugins can be measured" >&2
else
	@$(call go_install,tools,github.com/containernetworking/cni/cnitool@v1.3.0)
	@$(call go_install,1.9.1,$(addprefix $(plugins)/,$(addsuffix @v1.9.1,main/bridge main/ptp ipam/host-local meta/portmap)))
	@$(call go_install,0.9.1,$(addprefix $(plugins)/,$(addsuffix @v0.9.1,main/bridge main/ptp ipam/host-local meta/portmap meta/flannel)))
	@$(call go_install,1.9.1,github.com/flannel-io/cni-plugin@v1.9.1-flannel1)
	@cd $(CNI_PLUGINS)/1.9.1 && if [ -x cni-plugin ]; then mv cni-plugin flannel; fi
endif

# $(1): the set; $(2): packages
define go_install
mkdir -p $(CNI_PLUGINS)/$(1); for package in $(2); do \
	GOBIN=$(CURDIR)/$(CNI_PLUGINS)/$(1) CGO_ENABLED=0 GOFLAGS=-mod=mod \
		$(GO) install -ldflags '-s -w' $$package >$(CNI_PLUGINS)/build.log 2>&1 \
	&& echo "cni-plugins: $(1): $$package" \
	|| echo "cni-plugins: $(1): no $$package: $$(tail -n 1 $(CNI_PLUGINS)/build.log)" >&2; \
done
endef
