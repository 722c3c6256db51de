"""What firstlight claims of itself, measured: see ``__main__``."""
