"""What the runtime's own processes log: lines on standard error."""

import logging
from types import TracebackType

from firstlight.errors import printable

_Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Lines(logging.Formatter):
    """A message is one line, and a traceback is indented: no word of a function in it looks like a
    message of ours, or commands a terminal.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as the base has it
        return printable(super().formatMessage(record))

    def formatException(self, ei: _Raised) -> str:  # noqa: N802 - as the base has it
        return "\n".join("  " + printable(line) for line in super().formatException(ei).split("\n"))


def log_lines(form: str = "%(message)s", level: int = logging.WARNING) -> None:
    """Log so, unless something else in this process has set up logging."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(form))
    logging.basicConfig(level=level, handlers=[handler])
