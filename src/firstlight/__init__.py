"""firstlight: the laboratory and the runtime for fast function instantiation on Linux."""


def __getattr__(name: str) -> str:
    """Read ``__version__`` from the installed package's metadata; its source is meson.build."""
    if name == "__version__":
        from importlib.metadata import version

        return version("firstlight")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
