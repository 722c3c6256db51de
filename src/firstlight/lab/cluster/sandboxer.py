"""Requests pod sandboxes from a container runtime by the CRI, for the load generator.

    python -m firstlight.lab.cluster.sandboxer CONFIGURATION

It makes the kubelet's calls for a pod, without volumes and probes: RunPodSandbox, CreateContainer,
StartContainer. It writes ``ready``, or why not, to standard output and serves until its standard
input ends; then it names the sandboxes that may be left. Stamps are ns of CLOCK_MONOTONIC.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from firstlight.errors import longer
from firstlight.lab.cluster import start_server

PROTO = "firstlight/lab/cluster/cri.proto"
_INSTRUCTION = "firstlight ready "
_STATUS_SECONDS = longer(10.0)
_LOG_SECONDS = longer(5.0)
_END_SECONDS = longer(60.0)


class Configuration(msgspec.Struct, frozen=True):
    """``runtime`` is where the CRI listens, ``logs`` where containers' output is to go."""

    socket: str
    runtime: str
    logs: str


class Request(msgspec.Struct, frozen=True):
    """A sandbox with one container. ``trace`` is the trace id for the runtime's spans."""

    name: str
    image: str
    cgroup: str
    handler: str = ""
    args: tuple[str, ...] = ()
    trace: str = ""
    patience: float = 55.0


class Unanswered(RuntimeError):
    """The runtime may have done what was asked, or not."""


class Cri:
    """A connection to the CRI. Raises RuntimeError with the runtime's message."""

    def __init__(self, socket: str) -> None:
        import grpc

        self._grpc = grpc
        self.messages, services = grpc.protos_and_services(PROTO)
        channel = grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.default_authority", "localhost")]
        )
        self._stub = services.RuntimeServiceStub(channel)

    def call(self, verb: str, request: Any, seconds: float, trace: str = "") -> Any:  # noqa: ANN401
        """One call; ``trace`` makes it part of a trace that is sampled."""
        metadata = [("traceparent", f"00-{trace}-{trace[:16]}-01")] if trace else None
        try:
            return getattr(self._stub, verb)(request, timeout=seconds, metadata=metadata)
        except self._grpc.RpcError as error:
            codes = self._grpc.StatusCode
            is_answer = error.code() not in (codes.DEADLINE_EXCEEDED, codes.UNAVAILABLE)
            kind = RuntimeError if is_answer else Unanswered
            raise kind(f"{verb}: {error.details()}") from error

    def check(self) -> None:
        """Raise RuntimeError if the runtime or its network is not ready."""
        answer = self.call("Status", self.messages.StatusRequest(), _STATUS_SECONDS)
        for condition in answer.status.conditions:
            if condition.type in ("RuntimeReady", "NetworkReady") and not condition.status:
                raise RuntimeError(f"not {condition.type}: {condition.message}")


class Sandbox:
    """One start: a sandbox and its container. While it may be left it is in ``left``: why, by its
    id, or by its name if it has none.
    """

    def __init__(self, runtime: Cri, logs: str, left: dict[str, str]) -> None:
        self._runtime, self._logs, self._left = runtime, logs, left
        self._id, self._container = "", ""

    def prepare(self) -> None:
        """The connection is open."""

    def make(self, message: dict[str, Any]) -> list[str]:
        """The three calls, each a step."""
        request = msgspec.convert(message, Request)
        messages, call = self._runtime.messages, self._runtime.call
        options = messages.NamespaceOption(pid=1)
        config = messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(
                name=request.name, uid=request.name, namespace="firstlight"
            ),
            hostname=request.name,
            log_directory=self._logs,
            linux=messages.LinuxPodSandboxConfig(
                cgroup_parent=request.cgroup,
                security_context=messages.SecurityContext(namespace_options=options),
            ),
        )
        until = time.monotonic() + request.patience
        stamps = [time.monotonic_ns()]
        try:
            self._id = call(
                "RunPodSandbox",
                messages.RunPodSandboxRequest(config=config, runtime_handler=request.handler),
                request.patience, request.trace,
            ).pod_sandbox_id  # fmt: skip
        except Unanswered as error:
            self._left[request.name] = str(error)
            raise
        stamps.append(time.monotonic_ns())
        self._container = call(
            "CreateContainer",
            messages.CreateContainerRequest(
                pod_sandbox_id=self._id,
                sandbox_config=config,
                config=messages.ContainerConfig(
                    metadata=messages.ContainerMetadata(name="c"),
                    image=messages.ImageSpec(
                        image=request.image,
                        user_specified_image=request.image,  # CRI-O does not start without it
                    ),
                    args=request.args,
                    log_path=f"{request.name}.log",
                    stdin=True,
                    linux=messages.LinuxContainerConfig(
                        security_context=messages.ContainerSecurityContext(
                            namespace_options=options
                        )
                    ),
                ),
            ),
            until - time.monotonic(), request.trace,
        ).container_id  # fmt: skip
        stamps.append(time.monotonic_ns())
        call("StartContainer", messages.StartContainerRequest(container_id=self._container),
             until - time.monotonic(), request.trace)  # fmt: skip
        stamps.append(time.monotonic_ns())
        names = ("RunPodSandbox", "CreateContainer", "StartContainer")
        steps = [
            f"firstlight step {name} {stamps[place]} {stamps[place + 1]}"
            for place, name in enumerate(names)
        ]
        lines = self._output(request.name)
        if not any(line.startswith(_INSTRUCTION) for line in lines):
            raise RuntimeError("the container is started, but did not print firstlight ready")
        return [*steps, *lines]

    def _output(self, name: str) -> list[str]:
        log, until = Path(self._logs, f"{name}.log"), time.monotonic() + _LOG_SECONDS
        while True:
            text = log.read_text() if log.exists() else ""
            lines = [line.split(" ", 3)[-1] for line in text.splitlines()]
            if any(line.startswith(_INSTRUCTION) for line in lines) or time.monotonic() > until:
                return lines
            time.sleep(0.005)

    def end(self) -> None:
        """Stop and remove the sandbox, which removes its container."""
        messages, requests = self._runtime.messages, {}
        if self._container:  # at once: CRI-O gives it ten seconds otherwise
            requests["StopContainer"] = messages.StopContainerRequest(container_id=self._container)
        if self._id:
            self._left[self._id] = "its removal was not answered"
            for verb in ("StopPodSandbox", "RemovePodSandbox"):
                requests[verb] = getattr(messages, f"{verb}Request")(pod_sandbox_id=self._id)
        for verb, request in requests.items():
            try:
                self._runtime.call(verb, request, _END_SECONDS)
            except Unanswered:  # nor would it answer the next
                return
            except RuntimeError as error:
                self._left[self._id] = str(error)
            else:
                if verb == "RemovePodSandbox":
                    del self._left[self._id]


def main(file: Path) -> None:
    """Connect, and serve."""
    configuration = msgspec.json.decode(file.read_bytes(), type=Configuration)
    runtime = Cri(configuration.runtime)
    try:
        runtime.check()
    except RuntimeError as error:
        print(f"cannot use the runtime at {configuration.runtime}: {error}", flush=True)  # noqa: T201
        return
    Path(configuration.logs).mkdir(exist_ok=True)
    left: dict[str, str] = {}
    start_server.serve(
        Path(configuration.socket), lambda: Sandbox(runtime, configuration.logs, left)
    )
    print("ready", flush=True)  # noqa: T201 - the answer
    while os.read(0, 4096):
        pass
    start_server.await_ends(_END_SECONDS)
    for sandbox, why in left.copy().items():
        print(  # noqa: T201 - to whoever runs it
            f"sandbox {sandbox} is not known to be removed: {why}\n"
            f"remedy: crictl --runtime-endpoint unix://{configuration.runtime} pods, and rmp "
            "--force what is left, if the runtime still runs", file=sys.stderr,
        )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
