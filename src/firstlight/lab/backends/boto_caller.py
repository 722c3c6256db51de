"""Calls a registered function by boto3 for the load generator: run by an interpreter that has it.

Usage: SOCKET FUNCTION ENDPOINT PROVISIONED. It listens on the seqpacket SOCKET. Each connection has
a client of its own, whose connection to the node is open before the first call. A message is a
call; the answer is the agile runtime's of a handler (``agile.protocol``). What the function answers
is its own stamp: that of the payload, or JSON.
"""

import importlib
import json
import socket
import sys
import threading
import time
from typing import Any, Protocol

_MESSAGE_MOST = 65536
_LOOK_SECONDS = 0.02
_READY_SECONDS = 60.0
_OWN = "firstlight ready "
_open = threading.Lock()


class Lambda(Protocol):
    """boto3's client, as far as it is used."""

    def invoke(self, **named: object) -> dict[str, Any]: ...  # noqa: D102
    def get_account_settings(self) -> object: ...  # noqa: D102
    def put_provisioned_concurrency_config(self, **named: object) -> object: ...  # noqa: D102
    def get_provisioned_concurrency_config(self, **named: object) -> dict[str, str]: ...  # noqa: D102


class Caller:
    """Makes clients, and calls one function by them."""

    def __init__(self, function: str, endpoint: str) -> None:
        boto3 = importlib.import_module("boto3")
        config = importlib.import_module("botocore.config").Config
        self._function, self._endpoint = function, endpoint
        self._session = boto3.Session("none", "none", region_name="us-east-1")
        self._config = config(retries={"max_attempts": 0}, connect_timeout=10, read_timeout=60)

    def client(self) -> Lambda:
        """One with an open connection."""
        with _open:  # sessions are not made for threads
            made: Lambda = self._session.client(
                "lambda", endpoint_url=self._endpoint, config=self._config, use_ssl=False
            )
        made.get_account_settings()
        return made

    def provision(self, instances: int) -> None:
        """Keep this many instances of version 1 up."""
        client, named = self.client(), {"FunctionName": self._function, "Qualifier": "1"}
        client.put_provisioned_concurrency_config(
            **named, ProvisionedConcurrentExecutions=instances
        )
        until = time.monotonic() + _READY_SECONDS
        while client.get_provisioned_concurrency_config(**named)["Status"] != "READY":
            if time.monotonic() > until:
                raise SystemExit(f"{instances} instances are not ready in {_READY_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    def call(self, client: Lambda) -> dict[str, object]:
        """The answer to a message."""
        requested = time.monotonic_ns()
        try:
            answer = client.invoke(FunctionName=self._function, Qualifier="1", Payload=b"{}")
            text = answer["Payload"].read().decode()
        except Exception as error:  # of botocore, which cannot be imported by its name here
            return {"type": "error", "message": str(error)}
        if "FunctionError" in answer:
            return {"type": "error", "message": text}
        began = int(text.removeprefix(_OWN)) if text.startswith(_OWN) else json.loads(text)
        result = {"requested": requested, "began": began, "finished": time.monotonic_ns()}
        return {"type": "invoked", "result": result}

    def serve(self, connection: socket.socket) -> None:
        """Answer a greeting, then calls, until the other side leaves."""
        with connection:
            if not connection.recv(_MESSAGE_MOST):
                return
            client = self.client()
            connection.send(b"{}")
            while connection.recv(_MESSAGE_MOST):
                answer = self.call(client)
                connection.send(json.dumps(answer, separators=(",", ":")).encode())


def main(path: str, function: str, endpoint: str, provisioned: str) -> None:
    """Serve until standard input ends; say ``ready`` when calls can be made."""
    caller = Caller(function, endpoint)
    if int(provisioned):
        caller.provision(int(provisioned))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1024)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=caller.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
