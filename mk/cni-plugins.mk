# CNI plugins built by the Go toolchain by module path and version, each set in its own folder, which
# conf/cni names in "path". A plugin that cannot be built is reported and left out.

CNI_PLUGINS := .venv/libexec/cni
plugins := github.com/containernetworking/plugins/plugins
weave := github.com/weaveworks/weave/prog/weaveutil@ba64f8e8eb1f
calico := github.com/projectcalico/calico v1.11.0-cni-plugin.0.20250813170300-a0db560f0520
cilium := github.com/cilium/cilium v1.15.19

.PHONY: cni-plugins
cni-plugins: setup
	$(eval GO := $(shell mk/go.sh))
	@$(call go_install,tools,github.com/containernetworking/cni/cnitool@v1.3.0)
	@$(call go_install,1.9.1,$(addprefix $(plugins)/,$(addsuffix @v1.9.1,main/bridge main/ptp ipam/host-local meta/portmap)))
	@$(call go_install,0.9.1,$(addprefix $(plugins)/,$(addsuffix @v0.9.1,main/bridge main/ptp ipam/host-local meta/portmap meta/flannel)))
	@$(call go_install,1.9.1,github.com/flannel-io/cni-plugin@v1.9.1-flannel1)
	@cd $(CNI_PLUGINS)/1.9.1 && if [ -x cni-plugin ]; then mv cni-plugin flannel; fi
	@$(call go_install,weave,$(weave))
	@cd $(CNI_PLUGINS)/weave && ln -sf weaveutil weave-net && ln -sf weaveutil weave-ipam
	@$(call go_replaced,cilium,$(cilium),github.com/cilium/cilium/plugins/cilium-cni,cilium-cni)
	@$(call go_replaced,calico,$(calico),github.com/projectcalico/calico/cni-plugin/cmd/calico,calico,v0.0.0-20250616174329-f8873f4e4b40)
	@cd $(CNI_PLUGINS)/calico && ln -sf calico calico-ipam

# $(1): the set; $(2): packages with their versions
define go_install
mkdir -p $(CNI_PLUGINS)/$(1); for package in $(2); do \
	GOBIN=$(CURDIR)/$(CNI_PLUGINS)/$(1) CGO_ENABLED=0 GOFLAGS=-mod=mod \
		$(GO) install -ldflags '-s -w' $$package >$(CNI_PLUGINS)/build.log 2>&1 \
	&& echo "cni-plugins: $(1): $$package" \
	|| echo "cni-plugins: $(1): no $$package: $$(tail -n 1 $(CNI_PLUGINS)/build.log)" >&2; \
done
endef

# $(1): the set; $(2): module and version; $(3): the command; $(4): its name; $(5): version of the
# modules that it keeps in folders of its own
define go_replaced
mkdir -p $(CNI_PLUGINS)/$(1); mk/go-replaced.sh $(GO) $(2) $(3) $(CURDIR)/$(CNI_PLUGINS)/$(1)/$(4) $(5) \
	>$(CNI_PLUGINS)/build.log 2>&1 \
	&& echo "cni-plugins: $(1): $(3)" \
	|| echo "cni-plugins: $(1): no $(3): $$(tail -n 1 $(CNI_PLUGINS)/build.log)" >&2
endef
