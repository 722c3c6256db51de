"""What firstlight knows of how it was installed."""

from pathlib import Path

import pytest

from firstlight import native
from firstlight.lab import runner


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if installed from a wheel, in an environment of another project's repository."""
    package = tmp_path / "project/.venv/lib/firstlight"
    package.mkdir(parents=True)
    (tmp_path / "project/Makefile").touch()
    monkeypatch.setattr(native, "_PACKAGE", package)
    native.checkout.cache_clear()


@pytest.fixture(autouse=True)
def forgotten() -> object:
    yield
    native.checkout.cache_clear()


def test_installed_hints_name_no_makefile(packaged: None) -> None:
    assert native.checkout() is None
    assert native.make("kubernetes") == "in a checkout of firstlight: make kubernetes"
    assert "make" not in native.make("setup")


def test_the_revision_is_firstlights_and_no_other_repositorys(packaged: None) -> None:
    assert "+" not in runner.revision()


def test_no_git_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert runner.revision()
