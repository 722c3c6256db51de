"""Records that C and Python share: each field is where the other side looks for it."""

import json
import re
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from firstlight.agile import protocol
from firstlight.agile.network import nethelper
from firstlight.agile.node import wire as node_wire
from firstlight.agile.pods import wire as pods
from firstlight.agile.python import place
from firstlight.agile.shim import keeper, sandboxes
from firstlight.agile.wasm import wire as wasm_wire
from firstlight.errors import FirstlightError
from firstlight.lab import load
from firstlight.lab.cni import conf
from firstlight.trace import bpf

NATIVE = Path(__file__).parents[2] / "native"


def of_struct(record: struct.Struct) -> list[tuple[int, int]]:
    """Offset and size of each field of a format, and the size of all, at offset 0."""
    members = re.findall(r"(\d*)([a-zA-Z])", record.format)
    codes = [
        code for count, kind in members
        for code in ([f"{count}s"] if kind == "s" else [kind] * int(count or 1))
    ]  # fmt: skip
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
        ("agile/wire.h", "ask",
         "magic verb flags function version tag asked instance signal reserved",
         of_struct(node_wire.REQUEST)),
        ("agile/wire.h", "answer",
         "magic verb flags tag instance pid status error step address version user system "
         + " ".join(f"stamps[{step}]" for step in range(len(node_wire.Step) + 2)),
         of_struct(node_wire._ANSWER)),
        ("agile/wire.h", "words", "argc envc size", of_struct(node_wire._WORDS)),
        ("agile/wire.h", "definition",
         "number version flags profile reach reuse uid gid files scratch limits.memory "
         "limits.quota limits.pids host_name", of_struct(node_wire.DEFINITION)),
        ("agile/wire.h", "part_order",
         "index kind reach function address cgroup limits.memory limits.quota limits.pids quick "
         "note", of_struct(node_wire.PART)),
        ("agile/wire.h", "order", "verb flags id count length",
         [*of_struct(node_wire._ORDER)[:-1], (0, node_wire._ORDER.size + node_wire._BODY)]),
        ("agile/wire.h", "event",
         "verb flags id function version pid status error step network cgroup requested running "
         "user system", of_struct(node_wire._EVENT)),
        ("agile/place.h", "place_zygote", "scratch host_name", of_struct(place._ZYGOTE)),
        ("agile/place.h", "place_report", "step error", of_struct(place._REPORT)),
        ("agile/net.h", "net_request",
         "verb flags id index address gateway link peer mtu address6 gateway6",
         of_struct(nethelper._REQUEST)),
        ("agile/net.h", "net_answer", "id digests.state digests.counters quick error step",
         of_struct(nethelper._ANSWER)),
        ("agile/net.h", "net_range", "first last index", of_struct(nethelper._RANGE)),
        ("agile/wasm.h", "wasm_request", "id count padding", of_struct(wasm_wire._REQUEST)),
        ("agile/wasm.h", "wasm_event", "arguments input", of_struct(wasm_wire._EVENT)),
        ("agile/wasm.h", "wasm_value", "kind padding of.integer", of_struct(wasm_wire._INTEGER)),
        ("agile/wasm.h", "wasm_answer", "id first count", of_struct(wasm_wire._ANSWER)),
        ("agile/wasm.h", "wasm_result",
         "outcome values status text output error began finished", of_struct(wasm_wire._RESULT)),
        ("shim/keeper.c", "relay", "connection flags size", of_struct(keeper.RELAY)),
        ("shim/keeper.c", "note", "kind pid status unused time name", of_struct(keeper.NOTE)),
        ("shim/sandbox.c", "answer", "error text", of_struct(sandboxes._ANSWER)),
        ("trace/trace.h", "event", " ".join(bpf.EVENT.names or ()), of_dtype(bpf.EVENT)),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)  # fmt: skip
def test_a_record_is_the_same_in_c_and_in_python(
    tmp_path: Path, header: str, record: str, names: str, expected: list[tuple[int, int]]
) -> None:
    fields = "".join(
        f'printf("%zu %zu\\n", offsetof(struct {record}, {name}), '
        f"sizeof ((struct {record} *)0)->{name});\n"
        for name in names.split()
    )
    text = printed(tmp_path, header, f'{fields} printf("0 %zu\\n", sizeof(struct {record}));')
    result = [tuple(map(int, line.split())) for line in text.splitlines()]
    assert result == expected


def printed(directory: Path, header: str, statements: str) -> str:
    """What a program prints that includes a file of ours, which may be another program's."""
    program = directory / "layout.c"
    program.write_text(
        f'#define main other_main\n#include "{header}"\n#undef main\n'
        f"#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {statements} }}\n"
    )
    built = directory / "layout"
    flags = ("-D_GNU_SOURCE", "-ffunction-sections", "-Wl,--gc-sections", f"-I{NATIVE}")
    subprocess.run(["gcc", *flags, "-o", built, program], check=True)
    return subprocess.run([built], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("header", "prefix", "names"),
    [
        ("agile/wire.h", "STEP", node_wire.Step),
        ("agile/wire.h", "ASK", node_wire.RequestVerb),
        ("agile/wire.h", "ANSWER", node_wire.AnswerVerb),
        ("agile/wire.h", "DEFINITION", node_wire.Flag),
        ("agile/wire.h", "ORDER", node_wire.OrderVerb),
        ("agile/wire.h", "EVENT", node_wire.EventVerb),
        ("agile/net.h", "NET", nethelper.Verb),
        ("agile/net.h", "NET", nethelper.Flag),
        ("agile/wasm.h", "WASM", wasm_wire.WasmOutcome),
        ("cni/agent.h", "AGENT", pods.Verb),
        ("shim/keeper.c", "NOTE", keeper.Kind),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_record_names_has_the_same_number(
    tmp_path: Path, header: str, prefix: str, names: type[IntEnum]
) -> None:
    values = "".join(f'printf("%d\\n", (int){prefix}_{each.name});\n' for each in names)
    text = printed(tmp_path, header, values)
    assert list(map(int, text.split())) == [int(each) for each in names]


def test_steps_of_a_start_have_the_same_names(tmp_path: Path) -> None:
    text = printed(
        tmp_path, "agile/wire.h",
        "const char *names[] = {WIRE_STEPS(WIRE_STEP_NAME)};\n"
        'for (int i = 0; i < STEPS; i++) printf("%s\\n", names[i]);',
    )  # fmt: skip
    assert text.split() == [step.name.lower() for step in node_wire.Step]


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
    chain = (NATIVE / "cni" / "chain.h").read_text()
    assert f"CHAIN_PLUGINS = {conf._MOST}," in chain
    many = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}] * (conf._MOST + 1)}
    with pytest.raises(FirstlightError, match="plugins has 17 plugins"):
        conf.parse(json.dumps(many), "x.conflist")


def test_load_generator_uses_protocol_names() -> None:
    text = (NATIVE / "lab" / "launch_ask.c").read_text()
    named = {answer.__struct_config__.tag for answer in (protocol.Error, protocol.Invoked)}
    assert set(re.findall(r'message_is\(text, "(\w+)"\)', text)) == named | {"ended"}  # a peer's
