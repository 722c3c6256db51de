"""A Kubernetes control plane and node on one machine, in their own namespaces.

``programs`` finds the binaries, ``settings`` configures the components, ``node`` is the first
process, whose end is the end of all, and ``running`` is the cluster seen from outside.
"""
