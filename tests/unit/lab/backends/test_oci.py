"""What a runtime needs is found by asking it, not by its file's name."""

from pathlib import Path

import pytest

from firstlight.errors import Failed
from firstlight.host.workspace import Workspace
from firstlight.lab.backends import oci
from firstlight.lab.backends.oci import Bundles, Oci


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("name", ["runsc", "my-runtime", "runc"])
def test_a_runtime_is_known_by_what_it_says_of_itself(tmp_path: Path, name: str) -> None:
    runtime = Oci(program(tmp_path / name, "echo runsc version release-1; echo spec: 1.1"))
    assert not runtime.joins_network
    assert runtime.note
    assert "ptrace" in runtime.note


@pytest.mark.parametrize("script", ["exit 1", "echo what?", "printf '\\377'", "cat"])
def test_runtime_without_version_is_named_by_its_file(tmp_path: Path, script: str) -> None:
    assert not Oci(program(tmp_path / "runsc", script)).joins_network
    assert Oci(program(tmp_path / "other", script)).joins_network


def test_another_runtime_by_a_known_name_has_no_quirks(tmp_path: Path) -> None:
    assert Oci(program(tmp_path / "runsc", "echo runc version 1.2")).note is None


def test_a_runtime_that_does_not_delete_a_container_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci, "_DELETE_SECONDS", 0.1)
    hung = program(tmp_path / "hung", "exec sleep 60")
    (tmp_path / "state" / "c").mkdir(parents=True)
    bundles = Bundles(Oci(hung), hung, tmp_path, tmp_path, Workspace(tmp_path, "run"))
    with pytest.raises(Failed, match=r"hung has not deleted container c after 0.1 s"):
        bundles.remove()


def test_bundles_of_workspace_that_is_gone_are_removed(tmp_path: Path) -> None:
    """An interrupt while contextlib enters them is told to the workspace alone."""
    gone = tmp_path / "gone"
    Bundles(Oci("runc"), "runc", gone, tmp_path, Workspace(gone, "run-that-is-gone")).remove()
    assert not gone.exists()
