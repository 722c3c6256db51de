"""Every request and configuration is one that Firecracker's description allows."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import fakecracker

from firstlight.errors import Failed
from firstlight.lab.backends import firecracker_api as api
from firstlight.lab.backends.firecracker import without_pvh

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
maybe = st.none() | texts.filter(bool)
machines = st.builds(
    api.Machine, texts, texts, initrd=maybe, disk=maybe, writable=st.booleans(), tap=maybe,
    mac=st.just("52:54:00:f1:00:00"), has_rng=st.booleans(),
    memory_mb=st.integers(1, 1 << 16), cpus=st.integers(1, 32),
)  # fmt: skip


@given(machines)
def test_requests_are_as_described_and_end_with_the_start(machine: api.Machine) -> None:
    made = api.requests(machine)
    for each in made:
        fakecracker.check(each.method, each.path, each.body)
    assert made[-1] == api.Request("PUT", "/actions", {"action_type": "InstanceStart"})
    assert len({each.path for each in made}) == len(made)


@given(machines)
def test_the_configuration_says_what_the_requests_say(machine: api.Machine) -> None:
    document = json.loads(api.text(machine))
    bodies = []
    for content in document.values():
        bodies += content if isinstance(content, list) else [content]
    assert bodies == [each.body for each in api.requests(machine)[:-1]]


@given(st.none() | texts.filter(bool))
def test_saving_and_restoring_are_as_described(tap: str | None) -> None:
    for each in [*api.save("state", "memory"), *api.restore("state", "memory", tap)]:
        fakecracker.check(each.method, each.path, each.body)


@given(machines)
def test_a_request_is_a_line(machine: api.Machine) -> None:
    made = api.requests(machine)
    lines = api.lines(made).split("\n")
    assert lines.pop() == ""
    for line, each in zip(lines, made, strict=True):
        method, path, body = line.split(" ", 2)
        assert (method, path, json.loads(body)) == (each.method, each.path, each.body)


def test_the_description_refuses_what_is_not_in_it() -> None:
    for method, path, body in [
        ("PUT", "/machine-config", {"vcpu_count": 1}),
        ("PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 64}),
        ("PUT", "/boot-source", {"kernel_image_path": "/k", "kernel": "/k"}),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": False}),
        ("PUT", "/actions", {"action_type": "Start"}),
        ("GET", "/actions", {}),
    ]:
        with pytest.raises(fakecracker.Refused):
            fakecracker.check(method, path, cast("dict[str, Any]", body))


def test_an_api_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"does not answer: .*No such file"):
        api.perform(tmp_path / "api", api.save("state", "memory"))


@given(st.binary(max_size=64), st.sampled_from([4, 8]))
def test_a_kernel_loses_its_pvh_entry_and_nothing_else(around: bytes, size: int) -> None:
    head = b"\4\0\0\0" + size.to_bytes(4, "little")
    note = head + b"\x12\0\0\0Xen\0"
    assert without_pvh(around + note + around) == around + head + b"\0\0\0\0Xen\0" + around
