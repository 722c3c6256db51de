"""Answers containerd: its Sandbox API and its Task API, version 3.

Each call is a task of its own. A call that the previous server may have served is served again,
with the answer of the first time.
"""

import asyncio
import logging
import os
import platform
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from firstlight.agile.shim import tasks, usage
from firstlight.agile.shim.keeper import Keeper
from firstlight.agile.shim.sandboxes import Sandbox, Sandboxes
from firstlight.agile.shim.tasks import Container, Tasks
from firstlight.agile.shim.ttrpc import (
    HEADER,
    REQUEST,
    Code,
    Message,
    Refused,
    messages,
    namespace,
    now,
    refusal,
    response,
    timestamp,
)
from firstlight.errors import Failed

SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
TASK = "containerd.task.v3.Task"
LEFTOVERS = "firstlight.shim.Leftovers"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_log = logging.getLogger(__name__)


class Call(NamedTuple):
    """``again``: it may have been served in part."""

    namespace: str
    request: Message
    again: bool


Handler = Callable[[Call], Awaitable[Message]]


class Service:
    """Serves the frames that the keeper passes on."""

    def __init__(self, keeper: Keeper, pods: Sandboxes, containers: Tasks) -> None:
        self._keeper, self._pods, self._tasks = keeper, pods, containers
        self._calls: dict[tuple[int, int], asyncio.Task[None]] = {}
        m, sandbox = messages, messages.SandboxRequest
        process, task = messages.ProcessRequest, messages.TaskRequest
        self._handlers: dict[tuple[str, str], tuple[Message, Handler]] = {
            (SANDBOX, "CreateSandbox"): (m.CreateSandboxRequest, self._create_sandbox),
            (SANDBOX, "StartSandbox"): (sandbox, self._start_sandbox),
            (SANDBOX, "Platform"): (sandbox, self._platform),
            (SANDBOX, "StopSandbox"): (m.StopSandboxRequest, self._stop_sandbox),
            (SANDBOX, "WaitSandbox"): (sandbox, self._wait_sandbox),
            (SANDBOX, "SandboxStatus"): (m.SandboxStatusRequest, self._sandbox_status),
            (SANDBOX, "PingSandbox"): (sandbox, self._ping),
            (SANDBOX, "ShutdownSandbox"): (sandbox, self._shutdown_sandbox),
            (SANDBOX, "SandboxMetrics"): (sandbox, self._sandbox_metrics),
            (TASK, "State"): (process, self._state),
            (TASK, "Create"): (m.CreateTaskRequest, self._create),
            (TASK, "Start"): (process, self._start),
            (TASK, "Delete"): (process, self._delete),
            (TASK, "Pids"): (task, self._pids),
            (TASK, "Pause"): (task, self._pause),
            (TASK, "Resume"): (task, self._resume),
            (TASK, "Kill"): (m.KillRequest, self._kill),
            (TASK, "Exec"): (m.ExecProcessRequest, self._exec),
            (TASK, "ResizePty"): (m.ResizePtyRequest, self._resize),
            (TASK, "CloseIO"): (m.CloseIORequest, self._close_io),
            (TASK, "Update"): (m.UpdateTaskRequest, self._update),
            (TASK, "Wait"): (process, self._wait),
            (TASK, "Stats"): (task, self._stats),
            (TASK, "Connect"): (task, self._connect),
            (TASK, "Shutdown"): (task, self._ping),
            (LEFTOVERS, "Delete"): (m.Leftover, self._delete_leftover),
        }

    def frame(self, connection: int, frame: bytes, *, again: bool) -> None:
        """Serve a frame of a connection."""
        _, stream, kind, _ = HEADER.unpack_from(frame)
        if kind == REQUEST:
            serving = self._serve(connection, stream, frame[HEADER.size :], again=again)
            task = self._calls[connection, stream] = asyncio.create_task(serving)
            task.add_done_callback(lambda _: self._calls.pop((connection, stream), None))

    def connection_ended(self, connection: int) -> None:
        """A connection was closed: end its calls that only wait."""
        for (each, _), task in list(self._calls.items()):
            if each == connection and task.get_name() == "wait":
                task.cancel()

    async def _serve(self, connection: int, stream: int, frame: bytes, *, again: bool) -> None:
        try:
            call = messages.Request.FromString(frame)
            known = self._handlers.get((call.service, call.method))
            if known is None:
                what = f"{call.service}/{call.method}"
                raise Refused(Code.UNIMPLEMENTED, f"{what} is not supported by firstlight's shim")
            kind, handler = known
            task = asyncio.current_task()
            if task and call.method in ("Wait", "WaitSandbox"):
                task.set_name("wait")
            answer = await handler(Call(namespace(call), kind.FromString(call.payload), again))
            self._keeper.send(connection, response(stream, answer.SerializeToString()))
        except Refused as error:
            _log.info("refused: %s", error)
            self._keeper.send(connection, refusal(stream, error.code, str(error)))
        except (Failed, OSError) as error:
            _log.warning("a call failed: %s", error)
            self._keeper.send(connection, refusal(stream, Code.INTERNAL, str(error)))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # an unanswered containerd would wait for ever
            _log.exception("a call failed")
            self._keeper.send(connection, refusal(stream, Code.INTERNAL, repr(error)))

    # Sandboxes

    def _sandbox(self, call: Call) -> Sandbox:
        return self._pods.get(call.namespace, call.request.sandbox_id)

    async def _create_sandbox(self, call: Call) -> Message:
        if call.again and (before := self._pods.all.get((call.namespace, call.request.sandbox_id))):
            if before.is_running:
                return messages.Empty()
            await self._pods.remove(before)
        await self._pods.create(call.namespace, call.request)
        return messages.Empty()

    async def _start_sandbox(self, call: Call) -> Message:
        sandbox = self._sandbox(call)
        if not sandbox.is_running:
            raise Refused(Code.FAILED_PRECONDITION, f"sandbox {sandbox.record.id} has ended")
        record = sandbox.record
        return messages.StartSandboxResponse(
            pid=record.pid, created_at=timestamp(record.created_at)
        )

    async def _platform(self, call: Call) -> Message:
        self._sandbox(call)
        machine = platform.machine()
        known = messages.Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))
        return messages.PlatformResponse(platform=known)

    async def _stop_sandbox(self, call: Call) -> Message:
        await self._pods.stop(self._sandbox(call))
        return messages.Empty()

    async def _wait_sandbox(self, call: Call) -> Message:
        sandbox = self._sandbox(call)
        await sandbox.ended.wait()
        record = sandbox.record
        return messages.WaitResponse(
            exit_status=record.exit_status, exited_at=timestamp(record.exited_at or now())
        )

    async def _sandbox_status(self, call: Call) -> Message:
        sandbox, record = self._sandbox(call), self._sandbox(call).record
        state = "SANDBOX_READY" if sandbox.is_running else "SANDBOX_NOTREADY"
        answer = messages.SandboxStatusResponse(
            sandbox_id=record.id, pid=record.pid, state=state,
            created_at=timestamp(record.created_at), exited_at=timestamp(record.exited_at),
        )  # fmt: skip
        if call.request.verbose:
            paths = {name: f"/proc/{record.pid}/ns/{name}" for name in record.namespaces}
            if record.network:
                paths["network"] = record.network
            about = {
                "pid": record.pid,
                "processStatus": "running" if sandbox.is_running else "stopped",
                "runtimeSpec": {"linux": {
                    "cgroupsPath": record.cgroup,
                    "namespaces": [{"type": n, "path": path} for n, path in paths.items()],
                }},
            }  # fmt: skip
            answer.info["info"] = msgspec.json.encode(about).decode()
        return answer

    async def _ping(self, _: Call) -> Message:
        return messages.Empty()

    async def _shutdown_sandbox(self, call: Call) -> Message:
        """Also of one that is gone: after an error containerd keeps its own part of a sandbox."""
        if pod := self._pods.all.get((call.namespace, call.request.sandbox_id)):
            await self._pods.remove(pod)
        return messages.Empty()

    async def _sandbox_metrics(self, call: Call) -> Message:
        sandbox, record = self._sandbox(call), self._sandbox(call).record
        if not sandbox.cgroups:
            group = record.cgroup
            sandbox.cgroups = usage.below(group) if group else usage.of_process(record.pid)
        metric = messages.Metric(
            timestamp=timestamp(now()), id=record.id, data=usage.metrics(sandbox.cgroups)
        )
        return messages.SandboxMetricsResponse(metrics=metric)

    # Tasks

    def _container(self, call: Call) -> Container:
        return self._tasks.get(call.namespace, call.request.id)

    async def _create(self, call: Call) -> Message:
        async with self._tasks.lock(call.namespace, call.request.id):
            before = self._tasks.all.get((call.namespace, call.request.id))
            if call.again and before and before.first.status:
                return messages.PidResponse(pid=before.first.pid)
            pid = await self._tasks.create(call.namespace, call.request)
        return messages.PidResponse(pid=pid)

    async def _start(self, call: Call) -> Message:
        container = self._container(call)
        async with self._tasks.lock(call.namespace, container.id):
            process = self._tasks.process(container, call.request.exec_id)
            is_started = process.status != tasks.CREATED or (process.exec_id and process.pid)
            if not (call.again and is_started):
                await self._tasks.start(container, process.exec_id)
        return messages.PidResponse(pid=process.pid)

    async def _delete(self, call: Call) -> Message:
        request = call.request
        if pod := self._pods.all.get((call.namespace, request.id)):
            await self._pods.remove(pod)  # containerd cleans up a sandbox that it does not know
            return messages.DeleteResponse(pid=pod.record.pid)
        container = self._container(call)
        async with self._tasks.lock(call.namespace, container.id):
            process = await self._tasks.delete(container, request.exec_id)
        return messages.DeleteResponse(
            pid=process.pid, exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at or now()),
        )  # fmt: skip

    async def _state(self, call: Call) -> Message:
        container = self._container(call)
        process = self._tasks.process(container, call.request.exec_id)
        return messages.StateResponse(
            id=container.id, bundle=container.bundle, pid=process.pid, status=process.status,
            stdin=process.stdin, stdout=process.stdout, stderr=process.stderr,
            terminal=process.terminal, exit_status=process.exit_status,
            exited_at=timestamp(process.exited_at), exec_id=process.exec_id,
        )  # fmt: skip

    async def _pids(self, call: Call) -> Message:
        if pod := self._pods.all.get((call.namespace, call.request.id)):
            return messages.PidsResponse(processes=[messages.ProcessInfo(pid=pod.record.pid)])
        container = self._container(call)
        pids = usage.processes(container.cgroups)
        if container.first.status == tasks.STOPPED and not pids:
            pids = [container.first.pid]  # containerd, restarted, takes none for a leak
        return messages.PidsResponse(processes=[messages.ProcessInfo(pid=pid) for pid in pids])

    async def _pause(self, call: Call) -> Message:
        await self._tasks.pause(self._container(call))
        return messages.Empty()

    async def _resume(self, call: Call) -> Message:
        await self._tasks.pause(self._container(call), resume=True)
        return messages.Empty()

    async def _kill(self, call: Call) -> Message:
        await self._tasks.kill(self._container(call), call.request)
        return messages.Empty()

    async def _exec(self, call: Call) -> Message:
        container = self._container(call)
        async with self._tasks.lock(call.namespace, container.id):
            if not (call.again and call.request.exec_id in container.others):
                await self._tasks.exec(container, call.request)
        return messages.Empty()

    async def _resize(self, call: Call) -> Message:
        container, request = self._container(call), call.request
        process = self._tasks.process(container, request.exec_id)
        self._tasks.live(container, process).streams.resize(request.width, request.height)
        return messages.Empty()

    async def _close_io(self, call: Call) -> Message:
        container, request = self._container(call), call.request
        process = self._tasks.process(container, request.exec_id)
        if request.stdin:
            self._tasks.live(container, process).streams.close_input()
        return messages.Empty()

    async def _update(self, call: Call) -> Message:
        await self._tasks.update(self._container(call), call.request.resources.value)
        return messages.Empty()

    async def _wait(self, call: Call) -> Message:
        container = self._container(call)
        process = self._tasks.process(container, call.request.exec_id)
        await self._tasks.live(container, process).ended.wait()
        return messages.WaitResponse(
            exit_status=process.exit_status, exited_at=timestamp(process.exited_at)
        )

    async def _stats(self, call: Call) -> Message:
        return messages.StatsResponse(stats=usage.metrics(self._container(call).cgroups))

    async def _connect(self, call: Call) -> Message:
        if pod := self._pods.all.get((call.namespace, call.request.id)):
            pid = pod.record.pid
        else:
            pid = self._container(call).first.pid
        return messages.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version="firstlight")

    async def _delete_leftover(self, call: Call) -> Message:
        """Answer the shim's program, executed by containerd with the verb ``delete``."""
        key = call.request.namespace, call.request.id
        answer = messages.DeleteResponse(exit_status=137, exited_at=timestamp(now()))
        if container := self._tasks.all.get(key):
            async with self._tasks.lock(*key):
                answer.pid = container.first.pid
                await self._tasks.end(container)
                with suppress(Refused):
                    await self._tasks.delete(container, "")
                answer.exit_status = container.first.exit_status
        elif pod := self._pods.all.get(key):
            answer.pid = pod.record.pid
            await self._pods.remove(pod)
        return answer
