"""Where spans come from."""
