"""Instances' networks: addresses, links, the packet filter, and forwarding."""
