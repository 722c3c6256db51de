"""What archives are unpacked to, without the confinement."""

import io
import warnings
import zipfile
from pathlib import Path

import pytest

from firstlight.agile.functions import unpack_main


def test_a_zip_file_may_name_its_files_oddly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name in ("", "/", "./", "app.py", "/abs.py", "a//b.py", "win\\", "win\\c.py", "app.py"):
            written.writestr(zipfile.ZipInfo(name), name)
    unpack_main._zip(unpack_main.Tree(1 << 20, 100), archive, "task")
    found = [str(each.relative_to("task")) for each in Path("task").rglob("*") if each.is_file()]
    assert sorted(found) == ["a/b.py", "abs.py", "app.py", "win/c.py"]
