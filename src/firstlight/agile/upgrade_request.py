"""The content of HTTP requests that ask for another protocol, and do not get it.

httptools takes it for bytes of that protocol. Java's HttpClient asks for HTTP/2 with each request.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_LENGTHS = {b"content-length", b"transfer-encoding"}


def has_content(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these headers has content."""
    return any(name in _LENGTHS and value.strip(b"0") for name, value in headers)


def head(method: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head that a parser is given before the content of a request with these headers."""
    lengths = [b": ".join(each) for each in headers if each[0] in _LENGTHS]
    named = b"POST" if method == b"CONNECT" else method  # which asks for another protocol itself
    return b"\r\n".join([named + b" / HTTP/1.1", *lengths, b"", b""])


class Content:
    """Passes what a parser finds in that content on to ``handler``; not the requests after it."""

    def __init__(self, handler: Any) -> None:  # noqa: ANN401 - httptools knows it by its methods
        self._handler, self._is_over = handler, False
        self.on_body = handler.on_body
        self.on_message_begin = partial(self._pass_on, handler.on_message_begin)
        self.on_url = partial(self._pass_on, handler.on_url)
        self.on_header = partial(self._pass_on, handler.on_header)
        self.on_headers_complete = partial(self._pass_on, handler.on_headers_complete)

    def on_message_complete(self) -> None:
        """Pass on its end."""
        self._handler.on_message_complete()
        self._is_over = True

    def _pass_on(self, tell: Callable[..., None], *what: bytes) -> None:
        if self._is_over:
            tell(*what)
