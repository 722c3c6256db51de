"""How the HTTP server listens."""

import socket

from firstlight.agile.http import app


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on what a socket accepts only if its protocol is named."""
    with app._listening("127.0.0.1:0") as listening:
        assert listening.proto == socket.IPPROTO_TCP
