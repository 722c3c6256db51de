"""Records that another version of firstlight wrote, and that this one cannot read."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from firstlight.agile.functions.store import Store
from firstlight.agile.node import kept, wire
from firstlight.agile.node.kept import KeptFork
from firstlight.agile.node.process import Keepsake
from firstlight.agile.node.registry import Registry
from firstlight.errors import Failed


def test_a_function_of_the_registry_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "functions.db")
    with store._transaction() as base:
        base.execute("INSERT INTO functions VALUES ('hello', ?)", (b'{"name": 1}',))
    with pytest.raises(Failed, match="the function hello of the registry"):
        store.functions()
    store.close()


def test_a_function_of_the_node_is_refused_by_name() -> None:
    never: Any = None
    registry = Registry(never, never, never)
    definition = cast("wire.Definition", SimpleNamespace(number=1, version=1))
    with pytest.raises(Failed, match="another version of firstlight registered a function"):
        registry.adopt(definition, b'[{"rootfs": "/", "kind": "unheard-of"}, ""]')


def test_what_a_node_keeps_is_dropped(tmp_path: Path) -> None:
    dropped: list[int] = []
    keepsakes = [Keepsake(cast("Any", SimpleNamespace(drop=dropped.append)), n) for n in range(2)]
    known = kept.written(KeptFork(zygote=1, pid=2, cgroup=3, network="n"))
    unknown = os.memfd_create("kept")
    os.write(unknown, b'0{"type": "unheard-of"}')
    given = os.open(tmp_path, os.O_PATH)
    [item] = kept.read([(keepsakes[0], [unknown, given]), (keepsakes[1], [known])])
    assert item.what == KeptFork(zygote=1, pid=2, cgroup=3, network="n")
    assert dropped == [0]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(given)
