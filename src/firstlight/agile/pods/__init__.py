"""The node's agent: prepared networks for the pods of other runtimes, by the CNI plugin."""
