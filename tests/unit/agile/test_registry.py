"""The numbers of functions: no two that are registered have the same."""

import asyncio
from pathlib import Path

import pytest

from firstlight.agile.config import Config
from firstlight.agile.function import Function
from firstlight.agile.node.registry import Registered, Registry
from firstlight.errors import Failed


@pytest.mark.parametrize("fails", [False, True])
def test_node_end_frees_number_once(tmp_path: Path, fails: bool) -> None:
    async def register(entry: Registered) -> None:
        if entry.function.command == ("first",):
            registry.clear()
            if fails:
                raise Failed("the node has ended")

    async def forget(entry: Registered) -> None:
        del entry

    registry = Registry(Config(name="tu"), register, forget)

    async def get(word: str) -> Registered:
        return await registry.get(Function(rootfs=str(tmp_path), command=(word,)))

    async def main() -> None:
        free = len(registry._free)
        with pytest.raises(Failed, match="the node"):
            await get("first")
        assert sorted(registry._free) == sorted(set(registry._free))
        assert len(registry._free) == free
        second, third = await get("second"), await get("third")
        assert registry.number(second.number) is second
        assert registry.number(third.number) is third

    asyncio.run(main())


def test_registry_refuses_when_numbers_are_taken(
    tmp_path: Path,
) -> None:
    """A function's number makes its uid: no two that run may have the same."""

    async def nothing(entry: Registered) -> None:
        del entry

    registry = Registry(Config(name="tu"), nothing, nothing)
    asked = Function(rootfs=str(tmp_path), command=("first",))

    async def main() -> None:
        taken = [registry.only(asked) for _ in range(len(registry._free))]
        assert len({entry.number for entry in taken}) == len(taken)
        for entry in taken:
            registry.leave(entry)  # their instances still run
        with pytest.raises(Failed, match="no more functions"):
            registry.only(asked)
        with pytest.raises(Failed, match="no more functions"):
            await registry.get(asked)
        registry.free(taken[7])
        assert (await registry.get(asked)).number == taken[7].number

    asyncio.run(main())


def test_missing_files_do_not_delay_looks_at_others(tmp_path: Path) -> None:
    registered: list[str] = []

    async def register(entry: Registered) -> None:
        root = Path(entry.function.rootfs)
        if not root.is_dir():
            raise Failed(f"{root} is not a directory")
        registered.append(root.name)

    async def forget(entry: Registered) -> None:
        del entry

    async def main() -> None:
        registry = Registry(Config(name="tu"), register, forget)
        roots = [tmp_path / name for name in ("first", "second", "third")]
        for root in roots:
            root.mkdir()
            await registry.get(Function(rootfs=str(root), command=("true",)))
        registered.clear()
        for root in roots:
            root.rmdir()
        roots[2].mkdir()
        await registry.look()
        assert registered == ["third"]
        with pytest.raises(Failed, match="first is not a directory"):
            await registry.get(Function(rootfs=str(roots[0]), command=("true",)))

    asyncio.run(main())
