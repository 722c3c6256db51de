"""Records that C and Python share: each field is where the other side looks for it."""

import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from firstlight.agile import protocol
from firstlight.agile.pods import wire as pods
from firstlight.lab import load
from firstlight.trace import bpf

NATIVE = Path(__file__).parents[2] / "native"


def of_struct(record: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each field of a format, and the size of all, at offset 0."""
    codes = re.findall(r"\d*[a-zA-Z]", record.format)
    ends = [struct.calcsize("=" + "".join(codes[: many + 1])) for many in range(len(codes))]
    starts = [0, *ends[:-1]]
    fields = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
    return [*fields, (0, record.size)]


def of_dtype(record: np.dtype) -> list[tuple[int, int]]:
    assert record.fields is not None
    fields = [(place[1], place[0].itemsize) for place in record.fields.values()]
    return [*fields, (0, record.itemsize)]


@pytest.mark.parametrize(
    ("header", "record", "names", "expected"),
    [
        ("lab/launch_records.h", "launch_request",
         "verb batch count flags begin deadline bytes", of_struct(load._REQUEST)),
        ("lab/launch_records.h", "launch_start", "offset argc envc", of_struct(load._START)),
        ("lab/launch_records.h", "launch_answers", "batch count", of_struct(load._ANSWER)),
        ("lab/launch_records.h", "launch_record",
         "intended spawned seen exited user system faults pid status expired output",
         of_struct(load._RECORD)),
        ("cni/agent.h", "agent_request",
         "magic verb flags padding network attachment.container attachment.interface "
         "pod_namespace pod pod_uid", of_struct(pods.REQUEST)),
        ("cni/agent.h", "agent_answer",
         "magic code flags mtu address gateway address6 gateway6 mac host_mac link text",
         of_struct(pods.ANSWER)),
        ("cni/agent.h", "agent_attachment", "container interface", of_struct(pods.ATTACHMENT)),
        ("trace/trace.h", "event", " ".join(bpf.EVENT.names or ()), of_dtype(bpf.EVENT)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_record_is_the_same_in_c_and_in_python(
    tmp_path: Path, header: str, record: str, names: str, expected: list[tuple[int, int]]
) -> None:
    fields = "".join(
        f'printf("%zu %zu\\n", offsetof(struct {record}, {name}), '
        f"sizeof ((struct {record} *)0)->{name});\n"
        for name in names.split()
    )
    program = tmp_path / "layout.c"
    program.write_text(
        f'#include "{header}"\n#include <stddef.h>\n#include <stdio.h>\n'
        f'int main(void) {{ {fields} printf("0 %zu\\n", sizeof(struct {record})); }}\n'
    )
    built = tmp_path / "layout"
    subprocess.run(["gcc", f"-I{NATIVE}", "-o", built, program], check=True)
    text = subprocess.run([built], capture_output=True, text=True, check=True).stdout
    result = [tuple(map(int, line.split())) for line in text.splitlines()]
    assert result == expected


def test_constants_are_the_same_in_c_and_in_python() -> None:
    text = (NATIVE / "trace" / "trace.h").read_text()
    kinds = re.search(r"enum kind \{ (CALL) = 1, (.*?) \}", text)
    assert kinds
    names = [kinds[1], *kinds[2].split(", ")]
    assert [getattr(bpf, name, None) or getattr(bpf, f"_{name}") for name in names] == list(
        range(1, len(names) + 1)
    )
    assert f"UNSEEN = {bpf._UNSEEN} " in text
    launch = (NATIVE / "lab" / "launch_records.h").read_text()
    assert f"LAUNCH_RUN = {load._RUN}, LAUNCH_STOP = {load._STOP} " in launch
    flags = f"LAUNCH_SEQUENTIAL = {load._SEQUENTIAL}, LAUNCH_INHERIT = {load._INHERIT} "
    assert flags in launch


def test_the_load_generator_knows_answers_by_the_protocols_names() -> None:
    text = (NATIVE / "lab" / "launch_ask.c").read_text()
    named = {answer.__struct_config__.tag for answer in (protocol.Error, protocol.Invoked)}
    assert set(re.findall(r'message_is\(text, "(\w+)"\)', text)) == named | {"ended"}  # a peer's
