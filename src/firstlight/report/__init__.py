"""Shows runs: terminal tables, one HTML page, exports."""
