"""An address server with weaver's interface, for the weave plugin.

weaver itself needs a dummy device, which not every kernel has. This server answers the plugin's
requests on the same port and, like weaver, writes its whole map to disk at each change and waits
for the disk.

    POST /ip/ID    an address for ID; the same if it has one              200, text ADDRESS/LENGTH
    GET /ip/ID     the address of ID                                      200, or 404
    DELETE /ip/ID  frees it                                               204
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

ADDRESS = ("127.0.0.1", 6784)
NETWORK = IPv4Network("10.32.0.0/12")
BRIDGE = NETWORK.network_address + 1
"""The bridge's address, which is never allocated."""


class Addresses:
    """Allocated addresses by identifier. Each change is on disk before it is answered."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._owned: dict[str, IPv4Address] = {}
        self._free: list[IPv4Address] = []
        self._next = BRIDGE + 1

    def allocate(self, owner: str) -> IPv4Address | None:
        """The owner's address, allocated if it has none; None if none is free."""
        with self._lock:
            if owner not in self._owned:
                if self._free:
                    self._owned[owner] = self._free.pop()
                elif self._next < NETWORK.broadcast_address:
                    self._owned[owner] = self._next
                    self._next += 1
                else:
                    return None
                self._write()
            return self._owned[owner]

    def find(self, owner: str) -> IPv4Address | None:
        """The owner's address."""
        with self._lock:
            return self._owned.get(owner)

    def release(self, owner: str) -> bool:
        """Free the owner's address; False if it has none."""
        with self._lock:
            address = self._owned.pop(owner, None)
            if address is None:
                return False
            self._free.append(address)
            self._write()
            return True

    def _write(self) -> None:
        with self._file.open("wb") as file:
            file.write(json.dumps({owner: str(a) for owner, a in self._owned.items()}).encode())
            file.flush()
            os.fsync(file.fileno())


class Handler(BaseHTTPRequestHandler):
    """A plugin's connection."""

    protocol_version = "HTTP/1.1"
    addresses: Addresses

    def do_POST(self) -> None:  # noqa: D102
        self._answer_address(self.addresses.allocate(self._owner()), 503)

    def do_GET(self) -> None:  # noqa: D102
        self._answer_address(self.addresses.find(self._owner()), 404)

    def do_DELETE(self) -> None:  # noqa: D102
        owner = self._owner()
        if self.addresses.release(owner):
            self._answer(204, "")
        else:
            self._answer(500, f"Delete: no addresses for {owner}\n")

    def log_message(self, *_: object) -> None:
        """Log nothing: standard error belongs to the run."""

    def _owner(self) -> str:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        return self.path.partition("?")[0].removeprefix("/ip/").partition("/")[0]

    def _answer_address(self, address: IPv4Address | None, otherwise: int) -> None:
        text = f"{address}/{NETWORK.prefixlen}" if address else "no address\n"
        self._answer(200 if address else otherwise, text)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(ThreadingHTTPServer):
    """The server; a burst of plugins queues."""

    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    """Serve until killed; the argument is the file of the map."""
    Handler.addresses = Addresses(Path(sys.argv[1]))
    Server(ADDRESS, Handler).serve_forever()


if __name__ == "__main__":
    main()
