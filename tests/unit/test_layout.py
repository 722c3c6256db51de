"""Records that C and Python share: each field is where the other side looks for it."""

import inspect
import json
import re
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from firstlight.agile import protocol, sockets
from firstlight.agile.config import Config
from firstlight.agile.function import Function
from firstlight.agile.network import nethelper
from firstlight.agile.node import instances
from firstlight.agile.node import wire as node_wire
from firstlight.agile.parts import shelves
from firstlight.agile.pods import networks
from firstlight.agile.pods import wire as pods
from firstlight.agile.python import place
from firstlight.agile.shim import command, keeper, sandboxes
from firstlight.agile.wasm import client, workers
from firstlight.agile.wasm import wire as wasm_wire
from firstlight.cli import pods as cli
from firstlight.errors import FirstlightError
from firstlight.lab import load
from firstlight.lab.backends import network_steps, qemu_build
from firstlight.lab.cni import conf
from firstlight.lab.watch import follow
from firstlight.trace import bpf, kallsyms

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


@pytest.mark.parametrize(
    ("source", "values"),
    [
        ("agile/wire.h", {
            "ASK_MAGIC": node_wire.MAGIC, "WORDS_MAX": node_wire.WORDS_MAX,
            "ARGUMENTS_MAX": node_wire.ARGUMENTS_MAX, "NOTE_MAX": node_wire.NOTE_MAX,
            "RESOLVERS_MAX": node_wire.RESOLVERS_MAX, "KEPT": node_wire.KEPT,
            "PROFILE_BASE": instances._BASE_PROFILE, "WIRE_VERSION": node_wire.VERSION,
            "PART_NETWORK": node_wire.NETWORK, "PART_CGROUP": node_wire.CGROUP,
            "HELLO_STAY": node_wire.STAY, "HELLO_UNIFIED": node_wire.UNIFIED,
            "ASK_DETACHED": node_wire.DETACHED, "ASK_WORDS": node_wire.WITH_WORDS,
            "ASK_LOG": node_wire.KEEP_LOG, "ASK_TERMINAL": node_wire.TERMINAL,
            "ASK_AWAITED": node_wire.AWAITED, "ANSWER_WARM": node_wire.WARM,
            "ANSWER_OUT_OF_MEMORY": node_wire.OUT_OF_MEMORY,
            "ANSWER_TIMED_OUT": node_wire.TIMED_OUT,
            "EVENT_IS_DETACHED": node_wire.IS_DETACHED, "EVENT_CARRIED": node_wire.CARRIED,
            **{f"REACH_{each.upper()}": at for at, each in enumerate(node_wire.REACHES)},
            **{f"REUSE_{each.upper()}": at for at, each in enumerate(node_wire.REUSES)},
        }),
        ("agile/node.h", {
            "FUNCTIONS": node_wire.FUNCTIONS, "PARTS": node_wire.PARTS,
            "PART_SHELVED": node_wire.SHELVED, "PART_USED": node_wire.USED,
            "PART_LEFT": node_wire.LEFT, "NOBODY": shelves.NOBODY,
        }),
        ("agile/sandbox.c", {"tmpfs_default": Function(rootfs="/").scratch}),
        ("agile/place.h", {
            f"PLACE_{each.split()[-1].upper()}": at for at, each in enumerate(place._STEPS)
        }),
        ("agile/net.h", {
            "NET_BODY_MAX": nethelper._BODY_MAX, "NET_RANGES_MAX": nethelper.RANGES_MAX,
        }),
        ("agile/net_make.c", {
            f"HOST_MAC[{at}]": each for at, each in enumerate(networks._HOST_MAC)
        }),
        ("agile/wasm.h", {
            "WASM_MESSAGE_MAX": wasm_wire.MESSAGE_MAX, "WASM_MODULE_MAX": workers.MODULE_MAX,
            "WASM_CONNECTIONS_MAX": client.CONNECTIONS_MAX,
        }),
        ("agile/wasmtime.h", {"WASMTIME_VERSION": workers.WASMTIME}),
        ("cni/agent.h", {
            "AGENT_MAGIC": pods.MAGIC, "AGENT_FILL": pods.Flag.FILL,
            "AGENT_IPV6": pods.Flag.IPV6,
        }),
        ("cni/chain.h", {"CHAIN_PLUGINS": conf._MOST}),
        ("common/message.h", {"MESSAGE_MAX": protocol.MESSAGE_MAX}),
        ("common/socket.h", {"RIGHTS_MAX": sockets.RIGHTS_MAX}),
        ("lab/launch_records.h", {
            "LAUNCH_RUN": load._RUN, "LAUNCH_STOP": load._STOP,
            "LAUNCH_SEQUENTIAL": load._SEQUENTIAL, "LAUNCH_INHERIT": load._INHERIT,
        }),
        ("lab/linkspin.c", {"SPIN_NS": qemu_build._SPIN_NS}),
        ("lab/netsetup.c", {"NAMESPACE": network_steps._NAMESPACE}),
        ("shim/keeper.c", {"RELAY_AGAIN": keeper.AGAIN, "RELAY_ENDED": keeper.ENDED}),
        ("trace/command.c", {"CONFIG": follow._OF_BUNDLE, "RECORD": follow._OF_ENGINE}),
        ("trace/tracer.c", {
            "CALL": bpf._CALL, "FORK": bpf.FORK, "EXEC": bpf.EXEC, "EXIT": bpf._EXIT,
            "OFF": bpf._OFF, "LOCK": bpf._LOCK, "MARK": bpf._MARK, "STACK": bpf._STACK,
            "BEGIN": bpf.BEGIN, "UNSEEN": bpf._UNSEEN, "RING_LARGEST": bpf._RING_BYTES,
            "STACK_DEPTH": kallsyms._DEPTH, "FILE_MAX": follow._FILE_BYTES,
            "WORDS_MAX": follow._WORDS_BYTES, "STACKS + ASLEEP": min(kallsyms._KNOWN),
            "STACKS + PARKED": max(kallsyms._KNOWN),
        }),
        ("trace/watch.c", {"LONGEST_NS": follow._LONGEST_NS}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_constants_are_the_same_in_c_and_in_python(
    tmp_path: Path, source: str, values: dict[str, int]
) -> None:
    text = printed(
        tmp_path, source, "".join(f'printf("%lld\\n", (long long)({each}));' for each in values)
    )
    assert dict(zip(values, map(int, text.split()), strict=True)) == values


def test_a_list_of_too_many_plugins_is_refused() -> None:
    many = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}] * (conf._MOST + 1)}
    with pytest.raises(FirstlightError, match="plugins has 17 plugins"):
        conf.parse(json.dumps(many), "x.conflist")


def test_programs_find_sockets_where_servers_listen() -> None:
    """The defaults of programs that a runtime executes, which read no configuration."""
    agent = f'"{Config(name="pods").socket}"'
    assert agent in (NATIVE / "cni" / "plugin_conf.c").read_text()
    shim = inspect.signature(cli.shim).parameters
    assert f'"{shim["directory"].default}/socket"' in (NATIVE / "shim" / "shim.c").read_text()
    assert shim["prepared"].default == command.PREPARED


def test_load_generator_uses_protocol_names() -> None:
    text = (NATIVE / "lab" / "launch_ask.c").read_text()
    named = {answer.__struct_config__.tag for answer in (protocol.Error, protocol.Invoked)}
    assert set(re.findall(r'message_is\(text, "(\w+)"\)', text)) == named | {"ended"}  # a peer's
