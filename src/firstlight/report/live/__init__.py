"""What ``firstlight watch`` shows and exports while it runs: a page, and metrics."""
