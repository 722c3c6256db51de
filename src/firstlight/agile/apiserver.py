"""Follows objects of a Kubernetes API server in the way that scales to many nodes: one list, then a
watch.

The Python client finds the server and authenticates. Answers and watches are read here, as JSON.
The client's own watch waits for ever for a server that is gone, and cannot report that a new list
is needed.
"""

import json
import logging
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from firstlight import files
from firstlight.errors import Failed, Unsupported, install_extra, install_package, longer

IN_CLUSTER = "in-cluster"
METADATA = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
"""What kubectl shows of a list, without the objects' content."""
_ASK_SECONDS, _WATCH_SECONDS = longer(30.0), 30
_CONNECT_SECONDS = longer(3.0)  # tried four times, and pods wait for an agent for 30 s
_WAIT_LEAST, _WAIT_MOST = 1.0, 60.0
_EVENT_MOST = 16 << 20
_FILE_MOST = 16 << 20
_GONE = 410
_PLUGIN_SECONDS = longer(60.0)
_PLUGIN = """
import os, signal, subprocess, sys
try:
    plugin = subprocess.Popen(sys.argv[2:], start_new_session=True)
    sys.exit(plugin.wait(float(sys.argv[1])))
except subprocess.TimeoutExpired:
    os.killpg(plugin.pid, signal.SIGKILL)
    sys.exit(f"{sys.argv[2]} has not ended after {sys.argv[1]} s")
except OSError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    os.killpg(plugin.pid, signal.SIGKILL)
    sys.exit(130)
"""
"""Runs a kubeconfig's exec plugin, for which the Python client would wait for ever."""
_VALUES = re.compile(r"\{.*\}", re.DOTALL)
_log = logging.getLogger(__name__)

Object = dict[str, Any]
"""An object as the API has it in JSON."""


class Refused(Failed):
    """The server's answer is an error; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Said(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.words.append(record.getMessage())


def _check(file: Path) -> None:
    """Raise Failed for what the client would read without end."""
    try:
        files.read_regular(file, _FILE_MOST)
    except FileNotFoundError:
        pass  # of several, some may be missing
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from error


def settings(kubeconfig: str = "", context: str = "") -> Any:  # noqa: ANN401 - an untyped client
    """The Python client's settings by this file, or kubectl's, and this or the current context.

    ``kubeconfig`` may be several files, with ``:`` between them. Raises what the client does, and
    Failed where it only logs why a plugin gave no credentials, or would ignore what the file says.
    """
    from kubernetes import client, config

    made: Any = client.Configuration()
    said, log = _Said(), logging.getLogger()
    log.addHandler(said)
    try:
        _load(kubeconfig, context, made)
    except (AttributeError, KeyError, TypeError) as error:  # the client's, for other YAML
        raise Failed("it is not a kubeconfig") from error
    except config.ConfigException as error:  # it may have the whole user, with its secrets
        raise Failed(_VALUES.sub("…", str(error))) from None
    finally:
        log.removeHandler(said)
    if said.words and not made.api_key and not made.cert_file:
        raise Failed(f"no credentials: {said.words[-1]}")
    again = made.refresh_api_key_hook

    def trim(used: Any) -> None:  # noqa: ANN401
        if again:
            again(used)
        used.api_key = {name: key.strip() for name, key in used.api_key.items()}

    made.refresh_api_key_hook = trim  # a token's file may end with a new line
    return made


def _load(kubeconfig: str, context: str, made: Any) -> None:  # noqa: ANN401
    """As the client's ``load_kube_config``; but the current context is the first file's that has
    one, as kubectl's is, and plugins have a deadline.
    """
    from kubernetes.config import exec_provider, kube_config

    class Plugin(exec_provider.ExecProvider):
        def __init__(self, *words: Any) -> None:  # noqa: ANN401
            super().__init__(*words)  # type: ignore[no-untyped-call]
            if not sys.stdout.isatty():  # else it may ask its user
                self.args = [sys.executable, "-c", _PLUGIN, str(_PLUGIN_SECONDS), *self.args]

    client: Any = kube_config
    names = kubeconfig or client.KUBE_CONFIG_DEFAULT_LOCATION
    for name in filter(None, names.split(os.pathsep)):
        _check(Path(name).expanduser())
    client.ExecProvider = Plugin
    merged = client.KubeConfigMerger(names)
    if merged.config is None:
        raise Failed("there is no such file")
    current = (each.get("current-context") for each in merged.config_files.values())
    loader = client.KubeConfigLoader(
        merged.config, context or next(filter(None, current), None), config_base_path=None,
        config_persister=merged.save_changes,
    )  # fmt: skip
    if name := loader.current_context["context"].get("user"):
        user = merged.config["users"].get_with_name(name)["user"]
        if other := user.safe_get("as"):
            raise Failed(f"its user {name} acts as {other}, which firstlight cannot")
        if token := user.safe_get("tokenFile"):
            _check(Path(user.path or "").parent / token)
    loader.load_and_set(made)
    if str(made.proxy).startswith("socks") and not find_spec("socks"):
        raise Failed(f"its proxy {made.proxy} needs PySocks: {install_package('pysocks')}")


class Server:
    """The API server of a kubeconfig file, or "in-cluster". Raises FirstlightError."""

    def __init__(self, kubeconfig: str) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise Unsupported("the Python client of Kubernetes is missing",
                              install_extra("kubernetes")) from error  # fmt: skip
        made = None
        try:
            if kubeconfig == IN_CLUSTER:
                config.load_incluster_config()  # type: ignore[no-untyped-call]
            else:
                made = settings(kubeconfig)
        except Exception as error:
            raise Failed(f"cannot use the kubeconfig {kubeconfig}: {error}",
                         "name another file, or in-cluster in a pod") from error  # fmt: skip
        self._client: Any = client.ApiClient(made)

    def ask(
        self, method: str, path: str, body: Object | None = None, accept: str = "application/json"
    ) -> Object:
        """Send a request; returns the answer. Raises Refused, and errors of the connection."""
        answer = self._begin(method, path, accept, body=body)
        return _object(answer.status, answer.read())

    def follow(
        self, path: str, accept: str = "application/json", *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[dict[str, Object]]:  # fmt: skip
        """Yield the objects of a list by name: at once, after a change, and at least every 30 s.
        Never ends.

        A watch continues where the last one ended. The list is requested again only if the server
        no longer has that version. After a failure it waits, with growing delays. ``accept`` may be
        ``METADATA``.
        """
        objects: dict[str, Object] = {}
        seen, wait = "", _WAIT_LEAST
        while True:
            began = time.monotonic()
            try:
                if not seen:
                    answer = self._begin("GET", path, accept.format("List"))
                    listed = _object(answer.status, answer.read())
                    objects = {each["metadata"]["name"]: each for each in listed["items"]}
                    seen = listed["metadata"]["resourceVersion"]
                yield objects
                for event in self._events(path, accept.format(""), seen):
                    wait = _WAIT_LEAST
                    seen = _apply(event, objects)
                    if event["type"] != "BOOKMARK":
                        yield objects
                if time.monotonic() - began >= _WAIT_LEAST:
                    wait = _WAIT_LEAST
                    continue
            except Refused as error:
                if error.status == _GONE:
                    seen = ""
                _log.warning("cannot follow %s: %s", path, error)
            except Exception as error:  # the server is unreachable, or its answer is malformed
                _log.warning("cannot follow %s: %s", path, error)
            sleep(random.uniform(wait / 2, wait))  # noqa: S311 - spreads the nodes
            wait = min(2 * wait, _WAIT_MOST)

    def _events(self, path: str, accept: str, seen: str) -> Iterator[Object]:
        query = [("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", seen),
                 ("timeoutSeconds", str(_WATCH_SECONDS))]  # fmt: skip
        seconds = _WATCH_SECONDS + _ASK_SECONDS
        answer = self._begin("GET", path, accept, query, seconds=seconds)
        try:
            if not 200 <= answer.status <= 299:
                _object(answer.status, answer.read())
            waiting = b""
            for part in answer.response.stream(None):
                *lines, waiting = (waiting + part).split(b"\n")
                yield from map(_event, filter(None, lines))
                if len(waiting) > _EVENT_MOST:
                    raise Failed(f"the API server sends an event of {path} of more than "
                                 f"{_EVENT_MOST >> 20} MiB")  # fmt: skip
        finally:
            answer.response.close()

    def _begin(
        self, method: str, path: str, accept: str = "application/json",
        query: list[tuple[str, str]] | None = None, body: Object | None = None,
        seconds: float = _ASK_SECONDS,
    ) -> Any:  # noqa: ANN401 - an untyped client  # fmt: skip
        headers = {"Accept": accept}
        if body is not None:
            kind = "strategic-merge-patch+json" if method == "PATCH" else "json"
            headers["Content-Type"] = f"application/{kind}"
        asked = self._client.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        return self._client.call_api(*asked, _request_timeout=(_CONNECT_SECONDS, seconds))


def _apply(event: Object, objects: dict[str, Object]) -> str:
    """Apply a watch's event to the objects; returns the new resource version."""
    changed = event["object"]
    name = changed["metadata"].get("name")
    if event["type"] == "DELETED":
        objects.pop(name, None)
    elif event["type"] in ("ADDED", "MODIFIED"):
        objects[name] = changed
    return str(changed["metadata"]["resourceVersion"])


def _event(line: bytes) -> Object:
    event: Object = json.loads(line)
    if event["type"] == "ERROR":
        raise Refused(int(event["object"].get("code") or 0), str(event["object"].get("message")))
    return event


def _object(status: int, text: bytes) -> Object:
    """The object of an answer. Raises Refused."""
    try:
        answer: Object = json.loads(text)
    except ValueError as error:
        raise Refused(status, f"the API server answers {status}, and no JSON") from error
    if not 200 <= status <= 299:
        raise Refused(status, str(answer.get("message") or f"the API server answers {status}"))
    return answer
