"""Making runs: the experiments, what they start, and how it is driven and stopped."""
