"""Functions by name and version: what is registered with a node."""
