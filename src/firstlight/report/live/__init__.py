"""The live output of ``firstlight watch``: a page, metrics, traces."""
