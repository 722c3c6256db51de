"""Measures firstlight's marks: see ``__main__``."""
