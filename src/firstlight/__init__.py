"""firstlight: the laboratory and the runtime for fast function instantiation on Linux."""

__version__ = "0.1.0"
