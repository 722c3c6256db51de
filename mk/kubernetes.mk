# Kubernetes and containerd by module path and version, out of the Go module proxy: see the table in
# mk/kubernetes.py. They are kept below ~/.cache/firstlight, which "make clean" leaves alone.

.PHONY: kubernetes cni-daemons test-kubernetes chart agent-image functions-image lab-image watch-image
kubernetes: setup
	@$(BIN)/python mk/kubernetes.py

# The daemons of CNI products, for pods with their networks. flannel's plugin is of make cni-plugins.
cni-daemons: setup
	@$(BIN)/python mk/kubernetes.py daemons

# Builds that take longer are given up, and what was built is still tested.
test-kubernetes: export BUILD_SECONDS ?= 2400
test-kubernetes: setup
	@$(BIN)/python mk/kubernetes.py || echo "what needs the rest is skipped, and says so" >&2
	$(SUDO) env PATH="$$PATH" $(BIN)/pytest -q tests/kubernetes

# The images of the node's agent, of functions and of watch, for deploy/kubernetes, and of what
# measures on nodes.
agent-image functions-image lab-image watch-image: setup
	@$(BIN)/python mk/image.py $(@:-image=)

# A Helm chart of deploy/kubernetes.
chart: setup
	@$(BIN)/python mk/chart.py
