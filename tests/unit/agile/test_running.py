"""What the manager keeps of a node's instances and functions, when the node ends."""

import asyncio
from typing import Any, cast

from firstlight.agile.function import LOST, Ended, Function
from firstlight.agile.node.instances import Instances
from firstlight.agile.node.running import Running
from firstlight.agile.node.wire import Answer, AnswerVerb, Step


def test_an_answer_is_never_about_an_instance_of_an_earlier_node() -> None:
    async def scenario() -> None:
        node: Any = object()
        function = Function(rootfs="/", command=("true",))
        running = Running(lambda: node, asyncio.get_running_loop().create_future)
        for number in (1, 2):
            running.add(number, function, 0, None, 0)
        old = running.remove(1)
        assert old
        old.ended.set_result(Ended(status=42))
        assert running.note_answer(answer(1), function) is old  # its end came first
        node = None
        running.lost()
        assert await running.note_answer(answer(1), function).wait() == LOST
        node = object()
        for number in (1, 2):
            assert not running.note_answer(answer(number), function).ended.done()

    asyncio.run(scenario())


def test_a_function_is_forgotten_though_its_node_ends_meanwhile() -> None:
    class Node:
        async def forget(self, _: int) -> None:
            instances._node = None  # as when its end is seen in the same turn of the loop

        async def sync(self) -> None:
            synced.append(True)

    class Stock:
        def forget(self, entry: object) -> None:
            forgotten.append(entry)

    class Entry:
        number = 7

    synced, forgotten, entry = list[bool](), list[object](), cast(Any, Entry())
    instances: Any = object.__new__(Instances)
    instances._node, instances._stock = Node(), Stock()
    asyncio.run(Instances._forget(instances, entry))
    assert (synced, forgotten) == ([True], [entry])


def answer(number: int) -> Answer:
    return Answer(AnswerVerb.STARTED, 0, 0, number, 0, 0, 0, Step.EXEC, 0, 1, 0, 0, {})
